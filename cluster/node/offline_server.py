"""The offline teacher as a process of a node: started when the job says so, ended with the node."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alpaca_jobs.errors import TeacherUnreachable
from alpaca_jobs.generation.offline_spec import offline_teacher_spec
from alpaca_jobs.spec import TeacherSpec
from cluster.node.served_teacher import served_teacher

OFFLINE_LATENCY_S = (
    0.2  # a real teacher takes seconds; with none at all there would be nothing to watch or to interrupt
)
_START_LIMIT_S = 30.0


@contextmanager
def teacher_endpoint(
    teacher: TeacherSpec | str | None,
    scratch: Path,
    *,
    run_id: str | None = None,
    num_gpus: int = 0,
    may_wait: Callable[[], bool] = lambda: True,
) -> Iterator[TeacherSpec]:
    """Give the endpoint a job's teacher stands for; `offline`, and a model that the run serves itself, mean a server on
    this machine, started for as long as needed.

    Args:
        scratch: where the server says that it is up.
        run_id: whose batches it keeps from one start to the next, as a provider does.
        num_gpus, may_wait: served_teacher.py.
    """
    if isinstance(teacher, TeacherSpec) and teacher.serve is not None:
        with served_teacher(teacher, scratch, num_gpus=num_gpus, may_wait=may_wait) as endpoint:
            yield endpoint
        return
    if isinstance(teacher, TeacherSpec):
        yield teacher
        return
    ready = scratch / "offline-teacher.url"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "alpaca_jobs.generation.offline_teacher", "--port", "0"]
    command += ["--ready-file", str(ready), "--parent-pid", str(os.getpid())]
    command += ["--latency", str(OFFLINE_LATENCY_S)]
    if run_id is not None and teacher == "offline-batch":
        command += ["--state", str(offline_state(run_id))]
    if log := os.environ.get("ALPACA_JOBS_OFFLINE_LOG"):
        command += ["--log", log]  # tests count there what was really asked, outside the store
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield offline_teacher_spec(_wait_for(ready, server), word=teacher or "offline")
    finally:
        server.terminate()
        server.wait()


def offline_state(run_id: str) -> Path:
    """Where the offline teacher keeps the files and batches of a run, on this machine."""
    return Path(tempfile.gettempdir()) / f"alpaca-jobs-offline-{os.getuid()}" / run_id


def _wait_for(ready: Path, server: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < until and server.poll() is None:
        if ready.exists() and (url := ready.read_text().strip()):
            return url
        time.sleep(0.02)
    raise TeacherUnreachable(
        f"The offline teacher's server did not start within {_START_LIMIT_S:.0f} s (exit code {server.poll()}). "
        "Its own message stands above in the node's log."
    )
