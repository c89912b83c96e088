"""Ranks forked from a template: one import for all of a machine's ranks, and each is a process like any other."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import DataError
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import job_to_dict
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.errors import RayFailure
from cluster.node.train_forked import ForkedTrainWorker
from cluster.node.train_forks import _answer
from cluster.node.train_template import SOCKET, forks_ranks, template
from cluster.node.train_worker import WorkerAssignment

pytestmark = pytest.mark.process

JOB = JobSpec.model_validate(
    {
        "name": "small",
        "data": {"teacher": "offline", "num_rows": 8},
        "train": {
            "model": "tiny-llama", "exactness": "bits", "engine": "fsdp", "global_batch_size": 8, "epochs": 1,
            "micro_batch_size": 4, "max_steps": 1, "learning_rate": 3e-3, "max_length": 64, "dtype": "float32",
        },
        "compute": {"infra": ["local"], "workers": 2},
        "checkpoints": {"interval_steps": 1},
    }
)  # fmt: skip
ROWS = [Row(f"Add {n} and {n}.", "", f"It is {2 * n}.") for n in range(8)]


def wait_until(holds: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.02)


def templates() -> list[psutil.Process]:
    """Templates that this process started, and lives."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if "cluster.node.train_forks" in child.cmdline():
                found.append(child)
    return found


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """A folder whose sockets have short enough names."""
    folder = Path(tempfile.mkdtemp(prefix="aj-forks-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@dataclass
class Machine:
    """A template that has imported, and the workers whose ranks it forks."""

    process: psutil.Process
    workers: list[ForkedTrainWorker] = field(default_factory=list)

    def rank(self, rank: int) -> tuple[ForkedTrainWorker, psutil.Process]:
        """A worker and the process of its rank."""
        before = {child.pid for child in self.process.children()}
        worker = ForkedTrainWorker(rank)
        self.workers.append(worker)
        worker.prepare(job_to_dict(JOB))
        (process,) = [child for child in self.process.children() if child.pid not in before]
        return worker, process


@pytest.fixture(scope="module")
def imported(short_folder: Path) -> Iterator[psutil.Process]:
    """A template's process; ForkedTrainWorker finds it by the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SOCKET, "")  # put back at the end
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        with template(JOB, folder=short_folder, scratch=short_folder, machine=0):
            (process,) = templates()
            yield process


@pytest.fixture
def machine(imported: psutil.Process) -> Iterator[Machine]:
    one = Machine(imported)
    yield one
    for worker in one.workers:
        worker.close()
    wait_until(lambda: not imported.children(), "a rank outlived its worker")


def test_two_ranks_of_one_import_train_together(machine: Machine, tmp_path: Path) -> None:
    workers, processes = zip(*(machine.rank(rank) for rank in range(2)), strict=True)
    libraries = [
        [entry.path for entry in process.memory_maps() if "libtorch_cpu" in entry.path] for process in processes
    ]
    assert all(libraries), "a rank has its torch from the template, before it is asked for anything"
    AttemptLog(Store.open(f"file://{tmp_path}/store").child("run"), LAYOUT).claim(1, {})
    dataset = workers[0].tokenize(job_to_dict(JOB), ROWS, str(tmp_path))
    job = job_to_dict(JOB)
    store, meeting = f"file://{tmp_path}/store", f"file://{tmp_path}/meeting"
    assignment = WorkerAssignment(job, store, "run", 1, 2, meeting, (), False, str(tmp_path))
    results = together([lambda worker=worker: worker.run(assignment, dataset) for worker in workers])
    assert [(result.final_step, result.stopped_by) for result in results] == [(1, "done")] * 2
    assert [fact["step"] for fact in workers[0].drain() if fact["kind"] == "step"] == [1]
    assert workers[1].drain() == [], "rank 0 is the one that tells"


def together(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_a_template_has_one_thread_so_that_a_fork_of_it_is_whole(machine: Machine) -> None:
    machine.rank(0)  # it has imported everything
    assert machine.process.num_threads() == 1


def test_what_a_rank_raises_arrives_as_itself_and_says_where_it_came_from(machine: Machine, tmp_path: Path) -> None:
    worker, _ = machine.rank(0)
    with pytest.raises(DataError) as caught:
        worker.tokenize(job_to_dict(JOB), [], str(tmp_path))
    assert "prepare_dataset" in "".join(caught.value.__notes__)
    assert worker.drain() == [], "it goes on answering"


def test_a_rank_that_is_killed_fails_the_calls_that_wait_and_those_that_follow(machine: Machine) -> None:
    worker, process = machine.rank(1)
    os.kill(process.pid, signal.SIGSTOP)  # so that the call is still waiting
    words = r"The process of rank 1 ended, or could not be started\. ranks\.log .* memory was full"

    def kill_while_asked() -> None:
        wait_until(lambda: bool(worker._waiting), "the call to be under way")
        process.kill()

    with pytest.raises(RayFailure, match=words):
        together([worker.drain, kill_while_asked])
    with pytest.raises(RayFailure, match=words):
        worker.drain()
    wait_until(lambda: not psutil.pid_exists(process.pid), "the template left a dead rank behind")


def test_a_rank_ends_with_the_worker_it_works_for(machine: Machine) -> None:
    program = "from cluster.node.train_forked import ForkedTrainWorker as W; import os; W(0).drain(); os._exit(0)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    wait_until(lambda: not machine.process.children(), "its rank is still there")


def test_a_template_and_its_socket_end_with_the_block_also_while_it_imports(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, "")  # put back when this test is over
    folder = Path(tempfile.mkdtemp(prefix="aj-forks-", dir="/tmp"))
    with template(JOB, folder=folder, scratch=tmp_path, machine=3):
        (process,) = [one for one in templates() if one.pid != machine.process.pid]
        assert [path.name for path in folder.iterdir()] == ["ranks-3"]
        worker = ForkedTrainWorker(0)
    assert not psutil.pid_exists(process.pid)
    assert not folder.exists()
    with pytest.raises(RayFailure, match="The process of rank 0 ended, or could not be started"):
        worker.prepare(job_to_dict(JOB))
    late = ForkedTrainWorker(1)
    with pytest.raises(RayFailure, match="The process of rank 1 ended, or could not be started"):
        late.drain()


def test_a_template_ends_with_the_node_that_started_it(short_folder: Path, tmp_path: Path) -> None:
    program = """
import json, os, sys, psutil
from pathlib import Path
from alpaca_jobs.spec_io import job_from_dict
from cluster.node.train_template import template

job, folder = job_from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])
with template(job, folder=folder, scratch=folder, machine=1):
    print(*[child.pid for child in psutil.Process().children()], flush=True)
    os._exit(9)  # as a node that is killed: nothing is tidied up
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(job_to_dict(JOB)), str(short_folder)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    (pid,) = map(int, done.stdout.split())
    wait_until(lambda: not psutil.pid_exists(pid), "the template outlived its node")


class Stub:
    """Whatever a worker's method may do."""

    def fine(self, value: int) -> int:
        return value + 1

    def picky(self) -> None:
        class Local(Exception):
            pass

        raise Local("cannot travel")

    def leaves(self) -> None:
        sys.exit("asked to leave")

    def strange(self) -> Any:
        return lambda: None


@pytest.mark.parametrize(
    ("method", "arguments", "failed", "words"),
    [
        ("fine", (4,), False, "5"),
        ("picky", (), True, "Local: cannot travel"),
        ("leaves", (), True, "SystemExit: asked to leave"),
        ("strange", (), True, "pickle"),
        ("missing", (), True, "no attribute 'missing'"),
    ],
)
def test_every_call_is_answered_with_something_that_can_be_read(
    method: str, arguments: tuple[int, ...], failed: bool, words: str
) -> None:
    stub: Any = Stub()
    has_failed, value = pickle.loads(_answer(stub, method, arguments))
    assert has_failed is failed
    assert isinstance(value, Exception) is failed
    assert words in str(value)


def test_ranks_are_forked_where_they_have_no_gpus_and_we_train() -> None:
    command = JOB.model_copy(update={"train": JOB.train.model_copy(update={"method": "command"})})
    assert forks_ranks(JOB, 0)
    assert not forks_ranks(JOB, 8)
    assert not forks_ranks(command, 0)
