"""What a refusal means, whichever way it came: read from the server's words alone."""

from __future__ import annotations

import pytest

from alpaca_jobs.errors import TeacherError, TeacherWithoutSchemas
from alpaca_jobs.generation.teacher_reply import Complaint
from alpaca_jobs.generation.tries import Fault, Tries
from alpaca_jobs.spec import TeacherSpec


def refusal(complaint: Complaint, status: int = 400, **teacher: str) -> TeacherError:
    """The error that a refused request ends in."""
    tries = Tries(TeacherSpec.model_validate({"model": "m", **teacher}), None)
    with pytest.raises(Fault) as fault:
        tries.read_refusal(status, complaint, {}, left_out=())
    with pytest.raises(TeacherError) as ended:
        tries.check_retry(fault.value, 0, 0, 7)
    return ended.value


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
    "complaint",
    [
        Complaint("Unrecognized field: response_format", "", ""),
        Complaint("Invalid parameter: 'response_format' of type 'json_schema' is not supported.", "", ""),
        Complaint("This model does not support structured outputs.", "", ""),
        Complaint("not with this model", "unsupported_parameter", "response_format"),
    ],
)
def test_a_server_without_structured_output_is_told_apart_and_not_asked_again(
    complaint: Complaint, status: int
) -> None:
    error = refusal(complaint, status, answer_format="json")
    assert isinstance(error, TeacherWithoutSchemas)
    assert "Set data.teacher.answer_format: text" in str(error)


def test_only_a_job_that_asks_for_schemas_is_told_so() -> None:
    assert not isinstance(refusal(Complaint("response_format?", "", "")), TeacherWithoutSchemas)
    assert not isinstance(refusal(Complaint("no such model", "", ""), answer_format="json"), TeacherWithoutSchemas)
