"""`train.method: command` in a job file: what belongs together, and what is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import SpecError
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import job_from_dict, load_job, parse_job, render_job
from cluster.errors import PlanError
from cluster.price.workload import workload_of

GIVEN: dict[str, Any] = {"method": "command", "command": ["python", "t.py"], "model": "Qwen/Qwen2.5-0.5B"}


def job(compute: dict[str, Any] | None = None, **train: Any) -> JobSpec:
    return job_from_dict(
        {
            "name": "own", "data": {"from": "rows.jsonl"}, "train": {**GIVEN, **train},
            "compute": compute or {"infra": ["local"], "workers": 1},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"command": None}, "train.method is command, but there is no train.command"),
        ({"method": "full"}, "train.command is for a training program of your own, but method is full"),
        ({"method": "full", "command": None, "hours": 2}, "train.hours is for a training program of your own"),
        ({"files": ["a/t.py", "b/t.py"]}, "train.files has t.py twice"),
        ({"files": ["data.jsonl"]}, "train.files has data.jsonl twice"),
        ({"watch": "../out"}, "train.watch is ../out, but a folder in the command's own is wanted"),
        ({"watch": "/out"}, "train.watch is /out"),
    ],
)
def test_what_cannot_be_is_refused_in_words(train: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        job(**train)
    assert words in str(caught.value)


def test_a_command_runs_on_one_machine() -> None:
    with pytest.raises(SpecError, match=r"compute\.num_nodes is 2, but train\.method is command"):
        job({"infra": ["aws"], "gpus": "A100-80GB:8", "num_nodes": 2})


def test_files_are_found_beside_the_job_file_and_a_text_is_for_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(render_job(job(files=["t.py"], command="torchrun t.py")), encoding="utf-8")
    read = load_job(path)
    assert read.train.files == (str(tmp_path / "t.py"),)
    assert read.train.command == "torchrun t.py"
    assert parse_job(render_job(read)) == read


def test_how_long_it_trains_is_asked_for_not_guessed() -> None:
    with pytest.raises(PlanError, match=r"train\.hours: 3"):
        workload_of(job())
    found = workload_of(job(hours=2))
    assert (found.given_s, found.steps, found.num_parameters) == (7200, 0, 494_032_768)
