"""A teacher that the run serves itself, with a stand-in for vLLM: asked by its key, free, gone with the stage."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_jobs.errors import TeacherError, TeacherUnreachable
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec, TeacherSpec
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.node.offline_server import teacher_endpoint
from cluster.node.served_teacher import KEY_VARIABLE, command_line, served_teacher

pytestmark = pytest.mark.process

STAND_IN = [sys.executable, str(Path(__file__).with_name("vllm_stand_in.py")), "serve"]
DRIVER = Path(__file__).with_name("row_driver.py")
generate_rows = runpy.run_path(str(DRIVER))["generate_rows"]
lay_down = runpy.run_path(str(Path(__file__).with_name("row_run.py")), run_name="row_run")["lay_down"]


def teacher(folder: Path, *args: str, **server: Any) -> dict[str, Any]:
    return {
        "serve": "open/model-7B", "api": "completions", "max_retries": 2,
        "server": {"command": STAND_IN, "args": ["--starts", str(folder / "starts"), *args], **server},
    }  # fmt: skip


def spec(folder: Path, *args: str, **server: Any) -> TeacherSpec:
    return TeacherSpec.model_validate(teacher(folder, *args, **server))


def starts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "starts").read_text().splitlines()]


def are_gone(pids: list[int], *, within_s: float = 15.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.1)
    return False


def prepare(folder: Path, *args: str, num_rows: int = 60, **server: Any) -> Store:
    job = JobSpec.model_validate(
        {"name": "served", "train": {"model": "tiny-llama"}, "compute": {"workers": 1},
         "limits": {"teacher_max_usd": 0.01},
         "data": {"teacher": teacher(folder, *args, **server), "num_rows": num_rows, "num_actors": 2,
                  "concurrency": 2, "part_requests": 2}}
    )  # fmt: skip
    store: Store = lay_down(job, folder)
    return store


def test_rows_are_written_by_a_server_of_the_runs_own_and_no_dollar_is_spent(tmp_path: Path) -> None:
    store = prepare(tmp_path)
    state = generate_rows(store.uri, "run", 1, tmp_path / "scratch")
    assert len(state.rows) == 60
    (start,) = starts(tmp_path)
    assert start["host"] == "127.0.0.1"
    assert are_gone(start["pids"]), "it ends with the stage, and so does what it forked"
    assert KEY_VARIABLE not in os.environ
    run = store.child("run")
    answers = [json.loads(run.get(key))["answer"] for key in run.list("answers/")]
    assert {answer["cost_usd"] for answer in answers} == {0.0}
    events = [one for key in run.list("events/") for one in json.loads(run.get(key))["events"]]
    assert {one["usd"] for one in events if one["kind"] == "generation"} == {0.0}
    assert all(start["key"].encode() not in run.get(key) for key in run.list("")), "its key is nowhere in the store"


def test_nobody_without_the_key_is_answered_and_every_start_has_another(tmp_path: Path) -> None:
    for _ in range(2):
        with served_teacher(spec(tmp_path), tmp_path) as endpoint:
            assert endpoint.base_url is not None
            assert TeacherSpec.model_validate(endpoint.model_dump()) == endpoint, "a plain endpoint, as actors get it"
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{endpoint.base_url}/models", timeout=5)
    first, second = starts(tmp_path)
    assert first["key"] != second["key"]
    assert len(first["key"]) > 30


def test_a_killed_node_takes_the_server_with_it_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    store = prepare(tmp_path, num_rows=150)
    run = store.child("run")
    command = [sys.executable, str(DRIVER), store.uri, "run", "1", str(tmp_path / "scratch-1")]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not list_commits(run, LAYOUT) and time.monotonic() < until and killed.poll() is None:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert are_gone(starts(tmp_path)[0]["pids"])
    state = generate_rows(store.uri, "run", 2, tmp_path / "scratch-2")
    (tmp_path / "whole").mkdir()
    whole = generate_rows(prepare(tmp_path / "whole", num_rows=150).uri, "run", 1, tmp_path / "scratch-3")
    assert [row.to_json() for row in state.rows] == [row.to_json() for row in whole.rows]


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"exit code 1\).*does not fit into the GPU's memory.*data.teacher.server"):
        served_teacher(spec(tmp_path, "--leave"), tmp_path).__enter__()
    with pytest.raises(TeacherError, match=r"exit code 127\).*no-such-vllm cannot be run here: No such file"):
        served_teacher(spec(tmp_path, command=["no-such-vllm"]), tmp_path).__enter__()
    with pytest.raises(TeacherUnreachable, match=r"did not answer within 1 s.*start_s"):
        served_teacher(spec(tmp_path, "--wait", "60", start_s=1.0), tmp_path).__enter__()
    assert are_gone([pid for start in starts(tmp_path) for pid in start["pids"]])


def test_a_server_that_dies_at_work_ends_the_stage_with_its_last_words_and_answers_stay(tmp_path: Path) -> None:
    store = prepare(tmp_path, "--die-after", "5")
    with pytest.raises(TeacherUnreachable, match=r"exit code 3.*engine core died: out of memory"):
        generate_rows(store.uri, "run", 1, tmp_path / "scratch")
    assert 1 <= len(store.child("run").list("answers/")) <= 5


def test_a_notice_while_it_starts_is_not_waited_out(tmp_path: Path) -> None:
    began = time.monotonic()
    with teacher_endpoint(spec(tmp_path, "--wait", "60"), tmp_path, may_wait=lambda: time.monotonic() < began + 1.0):
        pass
    assert time.monotonic() - began < 30


def test_the_command_is_vllms_with_the_model_spread_over_the_gpus_unless_the_job_says_how(tmp_path: Path) -> None:
    plain = TeacherSpec.model_validate({"serve": "m"})
    assert command_line(plain, port=7, num_gpus=4)[1:] == [
        "serve", "m", "--host", "127.0.0.1", "--port", "7", "--tensor-parallel-size", "4",
    ]  # fmt: skip
    own = TeacherSpec.model_validate({"serve": "m", "server": {"args": ["--tensor-parallel-size", "2"]}})
    assert command_line(own, port=7, num_gpus=4)[-3:] == ["7", "--tensor-parallel-size", "2"]
