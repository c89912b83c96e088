"""What is looked at on this machine before anything is planned or paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import DataError, ModelError
from alpaca_jobs.job_inputs import check_inputs
from alpaca_jobs.spec import JobSpec

RENTED = {"infra": ["aws", "gcp"], "gpus": "A100-80GB:8"}


def _job(model: str, compute: dict[str, Any], **train: Any) -> JobSpec:
    body = {"name": "j", "data": {}, "train": {"model": model, **train}, "compute": compute}
    return JobSpec.model_validate({**body, "data": {"teacher": "offline", "num_rows": 10}})


def test_a_base_model_in_a_folder_that_is_not_there_is_refused_before_rows_are_written(tmp_path: Path) -> None:
    missing = str(tmp_path / "base")
    with pytest.raises(ModelError, match=f"train.model is {missing}, but there is no such folder here"):
        check_inputs(_job(missing, {"workers": 1}))
    Path(missing).mkdir()
    with pytest.raises(ModelError, match=r"it holds no config\.json"):
        check_inputs(_job(missing, {"workers": 1}))
    (tmp_path / "base" / "config.json").write_text("{}")
    check_inputs(_job(missing, {"workers": 1}))


def test_a_folder_of_this_machine_is_no_base_model_for_rented_machines(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"which machines rented from aws, gcp do not have.*owner/name"):
        check_inputs(_job(str(tmp_path), RENTED))
    check_inputs(_job(str(tmp_path), {**RENTED, "image": "docker:me/with-model:1"}))
    check_inputs(_job(str(tmp_path), {"infra": ["k8s"], "gpus": "A100:1", "spot": False}))


def test_names_of_the_hub_and_words_of_a_program_of_ones_own_are_not_looked_up() -> None:
    check_inputs(_job("owner/name", RENTED))
    check_inputs(_job("/its/own", {"workers": 1}, method="command", command="true"))


def test_a_file_for_the_training_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    job = _job("m", {"workers": 1}, method="command", command="true", files=[str(tmp_path / "train.py")])
    with pytest.raises(DataError, match=r"train.files is .*train.py, but no such file is on this machine"):
        check_inputs(job)
