"""This machine's memory of runs, its lock, the requests to stop, and what a node inherits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints.store import Store
from cluster.control import CancelWatch, answer_cancels, ask_cancel
from cluster.errors import RunActive, WrongInput
from cluster.exits import NODE_EXITS, Notice, describe_exit, read_notice, reason_of_exit, write_notice
from cluster.local.node_environ import node_environ
from cluster.phase import Marks, Phase, PhaseMarker, read_marks
from cluster.recovery import StopReason
from cluster.runs.home import Home, read_json

RUN = "demo-bcdfg"


def test_the_home_is_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Home.default({"ALPACA_JOBS_HOME": str(tmp_path)}).root == tmp_path
    assert Home.default({}).root == Path.home() / ".alpaca-jobs"
    monkeypatch.chdir(tmp_path)
    assert Home.default({"ALPACA_JOBS_HOME": "here"}).root == tmp_path / "here"


def test_a_run_id_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="is not a run id"):
        Home(tmp_path).run("../../etc")


def test_stores_are_remembered_newest_first_and_once(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.stores() == []
    for uri in ("file:///a", "file:///b", "file:///a"):
        home.remember_store(uri)
    assert home.stores() == ["file:///a", "file:///b"]


def test_capacity_is_read_each_time_and_wrong_counts_are_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.capacity("local/a") is None
    (tmp_path / "capacity.json").write_text('{"local/a": 2}')
    assert (home.capacity("local/a"), home.capacity("local/b")) == (2, None)
    (tmp_path / "capacity.json").write_text('{"local/a": "none"}')
    with pytest.raises(WrongInput, match=r"local/a is 'none', but a count of nodes is wanted"):
        home.capacity("local/a")
    (tmp_path / "capacity.json").write_text("{")
    with pytest.raises(WrongInput, match=r"capacity.json, line 1: not JSON"):
        home.capacity("local/a")
    (tmp_path / "capacity.json").write_text("[]")
    with pytest.raises(WrongInput, match="holds list, but a JSON object is wanted"):
        home.capacity("local/a")


def test_only_one_process_holds_a_run_and_the_kernel_gives_it_back(tmp_path: Path) -> None:
    folder = Home(tmp_path).run(RUN)
    code = (
        "import sys, time; from pathlib import Path; from cluster.runs.home import Home; "
        "lock = Home(Path(sys.argv[1])).run(sys.argv[2]).lock(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), RUN], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert folder.supervisor_pid() == holder.pid == folder.last_supervisor()
        with pytest.raises(RunActive, match=rf"already has a supervisor on this machine \(pid {holder.pid}\)"):
            folder.lock(timeout_s=0.1)
        holder.kill()
    assert folder.supervisor_pid() is None
    with folder.lock():
        assert folder.supervisor_pid() is not None
    assert oct(folder.path.stat().st_mode)[-3:] == "700"


class TestCancels:
    def test_a_resume_answers_those_before_it_and_none_after(self, tmp_path: Path) -> None:
        store = Store.open(f"file://{tmp_path}")
        watch = CancelWatch(store)
        assert not watch.open_cancels()
        ask_cancel(store)
        ask_cancel(store)
        assert len(watch.open_cancels()) == 2
        answer_cancels(store)
        assert not watch.open_cancels()
        answer_cancels(store)
        assert len(store.list("control/")) == 3  # there was nothing left to answer
        ask_cancel(store)
        assert len(watch.open_cancels()) == 1
        assert len(CancelWatch(store).open_cancels()) == 1


FULL = {
    "PATH": "/bin", "HOME": "/root", "LC_ALL": "C", "NCCL_DEBUG": "INFO", "ALPACA_JOBS_HOME": "/h",
    "OPENAI_API_KEY": "sk", "HF_TOKEN": "hf", "AWS_ACCESS_KEY_ID": "ak", "GOOGLE_APPLICATION_CREDENTIALS": "g",
    "AZURE_STORAGE_KEY": "az", "SOMETHING_ELSE": "1", "ALPACA_JOBS_KEY": "k", "RAY_ADDRESS": "auto",
}  # fmt: skip
PLAIN = {"PATH", "HOME", "LC_ALL", "NCCL_DEBUG", "ALPACA_JOBS_HOME"}


class TestEnvironment:
    def test_a_local_store_needs_no_credentials(self) -> None:
        assert set(node_environ(FULL, store_uri="file:///s", secrets=())) == PLAIN

    @pytest.mark.parametrize(
        ("uri", "name"),
        [
            ("s3://b", "AWS_ACCESS_KEY_ID"),
            ("gs://b", "GOOGLE_APPLICATION_CREDENTIALS"),
            ("az://b", "AZURE_STORAGE_KEY"),
        ],
    )
    def test_a_store_brings_its_own_credentials_and_no_others(self, uri: str, name: str) -> None:
        assert set(node_environ(FULL, store_uri=uri, secrets=())) == PLAIN | {name}

    def test_the_jobs_secrets_come_by_name(self) -> None:
        chosen = node_environ(FULL, store_uri="file:///s", secrets=("OPENAI_API_KEY", "NOT_SET"))
        assert set(chosen) == PLAIN | {"OPENAI_API_KEY"}


class TestExits:
    def test_every_reason_a_node_can_give_is_read_back(self) -> None:
        assert {reason: reason_of_exit(code) for reason, code in NODE_EXITS.items()} == {one: one for one in NODE_EXITS}
        assert set(StopReason) - set(NODE_EXITS) == {
            StopReason.LOST,
            StopReason.CAPACITY,
            StopReason.PART_DONE,
        }  # it cannot say these, or says them by 0 in a chain of tasks

    @pytest.mark.parametrize(
        ("code", "reason", "words"),
        [
            (-9, StopReason.LOST, "killed by SIGKILL"),
            (137, StopReason.LOST, "killed by SIGKILL"),
            (-15, StopReason.PREEMPTED, "killed by SIGTERM"),
            (-11, StopReason.CRASHED, "killed by SIGSEGV"),
            (134, StopReason.CRASHED, "killed by SIGABRT"),
            (17, StopReason.CRASHED, "exit code 17"),
            (130, StopReason.CANCELLED, "exit code 130"),
            (255, StopReason.CRASHED, "exit code 255"),
            (None, StopReason.LOST, "ended unseen"),
        ],
    )
    def test_signals_and_unknown_codes(self, code: int | None, reason: StopReason, words: str) -> None:
        assert (reason_of_exit(code), describe_exit(code)) == (reason, words)

    def test_a_notice_says_why_and_without_one_it_is_the_machine(self, tmp_path: Path) -> None:
        assert read_notice(tmp_path, window_s=7) == Notice(StopReason.PREEMPTED, 7)
        write_notice(tmp_path, Notice(StopReason.BUDGET, 12.5))
        assert read_notice(tmp_path) == Notice(StopReason.BUDGET, 12.5)


def test_marks_say_what_a_node_did_last(tmp_path: Path) -> None:
    assert read_marks(tmp_path) == Marks(Phase.STARTING, None, None)
    marker = PhaseMarker(tmp_path)
    marker.enter(Phase.STEP)
    marker.reached("train", 17)
    marker.saving(16)
    marks = read_marks(tmp_path)
    assert marks == Marks(Phase.STEP, 16, ("train", 17))
    assert Marks.from_json(json.loads(json.dumps(marks.to_json()))) == marks
    marker.saving(None)
    assert read_marks(tmp_path).saving is None


def test_a_missing_file_is_no_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "nothing.json") is None
