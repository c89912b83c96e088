"""A batch's file and its output: what every kind of line comes to, within the same bounds as a direct request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alpaca_jobs.errors import TeacherAuth, TeacherError, TeacherUnreachable
from alpaca_jobs.generation.batch_lines import BatchItem, Round, first_round, parse_lines, read_round, render_round
from alpaca_jobs.generation.pricing import cost_usd
from alpaca_jobs.generation.teacher_reply import Usage
from alpaca_jobs.generation.teacher_request import TeacherRequest
from alpaca_jobs.generation.tries import Tries
from alpaca_jobs.spec import TeacherSpec

PRICED = {"price_per_million_input_usd": 2, "price_per_million_output_usd": 8}
TEACHER = TeacherSpec(model="m", api="chat", batch_api=True, max_retries=2, max_billed_retries=1, **PRICED)
USED = {"prompt_tokens": 10, "completion_tokens": 20}


def request(number: int) -> TeacherRequest:
    return TeacherRequest(number, f"Prompt {number}", 1000, 1.0, 1.0, ("\n21.",), f"d{number}", {"type": "object"})


def line(number: int, status: int = 200, *, text: str | None = "Fine.", **error: str) -> dict[str, Any]:
    body = {"error": error} if error else {"choices": [{"message": {"content": text}}], "usage": USED}
    return {"custom_id": f"request-{number}", "response": {"status_code": status, "body": body}, "error": None}


ROUND = first_round("run/1", [request(1), request(2)])


def test_a_file_holds_what_a_direct_request_would_send() -> None:
    tries = Tries(TEACHER, None)
    one, _ = map(json.loads, render_round(ROUND, tries).splitlines())
    assert (one["custom_id"], one["method"], one["url"]) == ("request-1", "POST", "/v1/chat/completions")
    assert one["body"] == tries.arguments(request(1), 1000)
    completions = Tries(TEACHER.model_copy(update={"api": "completions"}), None)
    assert json.loads(render_round(ROUND, completions).splitlines()[0])["url"] == "/v1/completions"


def test_a_round_survives_json() -> None:
    items = (BatchItem(request(1), 800, 2, (Usage(1, None), Usage(3, 4))), BatchItem(request(2), 1000))
    round_ = Round("run/2", items, ("stop",))
    assert Round.from_json(json.loads(json.dumps(round_.to_json()))) == round_


def test_answers_cost_half_and_come_in_the_rounds_order_whatever_the_files() -> None:
    ended = read_round(ROUND, [line(2), line(1)], Tries(TEACHER, None))
    assert [answer.number for answer in ended.answers] == [1, 2]
    assert ended.answers[0].cost_usd == pytest.approx((10 * 2 + 20 * 8) / 1e6 / 2)
    assert ended.left == ()
    assert cost_usd(TEACHER.model_copy(update={"batch_api": False}), 10, 20) == pytest.approx(180e-6)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        {"custom_id": "request-1", "response": None, "error": {"code": "batch_expired", "message": "Too late."}},
        line(1, 429, message="slow down"),
        line(1, 500, message="oops"),
    ],
    ids=["missing", "expired", "429", "500"],
)
def test_what_was_not_answered_is_asked_again_for_nothing_and_in_the_end_said(bad: Any) -> None:
    tries = Tries(TEACHER, None)
    lines = [one for one in (bad, line(2)) if one]
    ended = read_round(ROUND, lines, tries)
    assert [answer.number for answer in ended.answers] == [2]
    assert ended.left == (BatchItem(request(1), 1000, 1),)
    assert ended.must_wait
    last = read_round(Round("x", (BatchItem(request(1), 1000, 2),)), lines, tries)
    assert isinstance(last.error, TeacherError)
    assert "request 1 after 3 tries" in str(last.error)
    assert last.left == (BatchItem(request(1), 1000, 0),), "a resume begins anew with it"


def test_garbage_is_billed_and_given_up_when_no_more_may_be() -> None:
    tries = Tries(TEACHER, None)
    once = read_round(ROUND, [line(1, text=None), line(2)], tries)
    assert once.left == (BatchItem(request(1), 1000, 1, (Usage(10, 20),)),)
    assert not once.must_wait
    twice = read_round(Round("x", once.left), [line(1, text=None)], tries)
    (given_up,) = twice.answers
    assert (given_up.finish_reason, given_up.at_most_usd) == ("unusable", pytest.approx(180e-6))
    assert twice.error is None


def test_a_refusal_by_the_content_filter_is_an_answer() -> None:
    ended = read_round(ROUND, [line(1, 400, code="content_filter", message="no"), line(2)], Tries(TEACHER, None))
    assert [answer.finish_reason for answer in ended.answers] == ["content_filter", "stop"]


def test_a_prompt_that_is_too_long_gets_a_shorter_completion() -> None:
    long = line(1, 400, code="context_length_exceeded", message="too long")
    tries = Tries(TEACHER, None)
    ended = read_round(ROUND, [long, line(2)], tries)
    assert ended.left == (BatchItem(request(1), 800),)
    hopeless = read_round(Round("x", (BatchItem(request(1), 1),)), [long], tries)
    assert "the prompt of request 1 alone does not fit" in str(hopeless.error)


def test_a_parameter_that_the_server_does_not_take_costs_every_request_of_the_batch_one_try_and_no_more() -> None:
    tries = Tries(TEACHER, None)
    words = {"code": "unsupported_parameter", "message": "no stop here", "param": "stop"}
    bad = [{**line(number, 400), "response": {"status_code": 400, "body": {"error": words}}} for number in (1, 2)]
    ended = read_round(ROUND, bad, tries)
    assert ended.error is None
    assert len(ended.left) == 2
    assert not ended.must_wait
    assert tries.unsupported == {"stop"}
    again = Round("x", ended.left, ("stop",))
    assert "stop" not in json.loads(render_round(again, tries).splitlines()[0])["body"]
    assert read_round(again, bad, tries).error is not None, "it was left out, and still refused"


def test_a_refused_key_ends_it_and_the_answers_of_the_others_are_kept() -> None:
    ended = read_round(ROUND, [line(1, 401, message="bad key"), line(2)], Tries(TEACHER, "sk-1"))
    assert isinstance(ended.error, TeacherAuth)
    assert [answer.number for answer in ended.answers] == [2]


def test_lines_that_are_none_are_passed_over() -> None:
    assert parse_lines(b'{"custom_id": "a"}\n\n[1]\nnot JSON\n{"custom_id": "b"}') == [
        {"custom_id": "a"},
        {"custom_id": "b"},
    ]
    odd = {"custom_id": "request-1", "response": {"status_code": "200"}, "error": None}
    ended = read_round(ROUND, [odd, line(2)], Tries(replace_retries(0), None))
    assert isinstance(ended.error, TeacherUnreachable)


def replace_retries(count: int) -> TeacherSpec:
    return TEACHER.model_copy(update={"max_retries": count})
