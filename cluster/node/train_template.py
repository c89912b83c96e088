"""The template: one process that imports what training needs, from which a machine's ranks are forked.

Two ranks that load torch and transformers, each for itself, were most of a recovery on two cores (docs/BENCHMARKS.md).
The template does it once, and begins while Ray is still starting. Ray places a ForkedTrainWorker (train_forked.py) for
each rank, which connects to the template's socket and is given a rank of its own (train_forks.py). The template has one
thread, no Ray and no open connection, so that a fork of it is a whole process.

Not where ranks have GPUs: CUDA does not survive a fork once anything imported has asked it anything, and such machines
have a core for every rank. There each rank's imports are its own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import job_to_dict

SOCKET: Final = "ALPACA_JOBS_RANKS"
"""The variable by which Ray's workers find the template of their machine."""


def forks_ranks(job: JobSpec, gpus_per_node: int) -> bool:
    """Whether this job's ranks come from a template."""
    return gpus_per_node == 0 and "train" in job.stages and job.train.method != "command"


@contextmanager
def template(job: JobSpec, *, folder: Path, scratch: Path, machine: int) -> Iterator[None]:
    """A template for as long as the block runs; to be entered before this machine's Ray is started.

    Args:
        folder: where its socket is put, short (`ray_folder`).
        scratch: where what ranks say is kept, in ranks.log.
        machine: the number of this one, as several may share a folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"ranks-{machine}"
    path.unlink(missing_ok=True)
    os.environ[SOCKET] = str(path)
    with socket.socket(socket.AF_UNIX) as listener, (scratch / "ranks.log").open("ab") as log:
        listener.bind(str(path))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.node.train_forks", str(listener.fileno())],
            pass_fds=[listener.fileno()], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,  # a notice to the node's group is not for it
            env={**os.environ, "OMP_NUM_THREADS": str(job.compute.threads_per_worker), "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it ended at once, which each rank's worker finds out
            process.stdin.write(json.dumps(job_to_dict(job)).encode() + b"\n")
            process.stdin.flush()
        yield
    finally:
        process.kill()  # its ranks go with Ray's workers
        process.communicate()
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it is Ray's as well
            folder.rmdir()
