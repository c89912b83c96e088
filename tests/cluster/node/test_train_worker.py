"""What a training worker tells its driver, without training."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.training.metrics import StepMetrics
from cluster.events import seconds_of
from cluster.node.train_worker import TrainWorker, WorkerAssignment, WorkerControl, part
from cluster.phase import PhaseMarker, read_marks


def metrics(step: int) -> StepMetrics:
    return StepMetrics(
        step=step, epoch=0, loss=1.0, learning_rate=0.1, grad_norm=1.0, tokens=8, target_tokens=4, seconds=0.5,
        tokens_per_second=16.0, tokens_per_second_per_gpu=16.0, mfu=None, peak_memory_bytes=1, data_wait_s=0.0,
    )  # fmt: skip


def test_steps_say_which_save_is_under_way_until_it_has_ended(tmp_path: Path) -> None:
    control = WorkerControl()
    nobody: Any = None
    control.begin(nobody, nobody, PhaseMarker(tmp_path), total_steps=40)
    control.stepped(metrics(10))
    control.saving(10)
    control.stepped(metrics(11))
    assert read_marks(tmp_path).saving == 10
    control.saving(None)
    control.stepped(metrics(12))
    before, begun, during, since = control.drain()
    assert begun == {"kind": "saving", "position": 10}
    assert (during["kind"], during["step"], during["saving"]) == ("step", 11, 10)
    assert seconds_of(during["saving_since"]) > 0
    assert not {"saving", "saving_since"} & (before.keys() | since.keys())
    assert read_marks(tmp_path).saving is None


def test_ranks_that_want_gpus_which_torch_cannot_use_say_why_before_they_meet(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch can use a GPU here")
    assignment = WorkerAssignment(
        job={}, store_uri="", run_id="r", attempt=1, world_size=1, rendezvous=f"file:{tmp_path}/meet", candidates=(),
        base_is_open=False, scratch=str(tmp_path), on_gpu=True,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="This machine's GPU cannot be used: torch"):
        TrainWorker(1)._meet(assignment)
    assert not torch.distributed.is_initialized()


@pytest.fixture
def no_group() -> Iterator[None]:
    """Afterwards there is no process group, and nobody listens to warnings."""
    ours = [logging.getLogger(name) for name in ("alpaca_jobs", "checkpoints", "cluster")]
    before = [list(one.handlers) for one in ours]
    yield
    for one, handlers in zip(ours, before, strict=True):
        one.handlers = handlers
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("on_gpu", "fails", "stays"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_a_rank_that_fails_on_a_gpu_does_not_wait_for_the_others_to_leave(
    on_gpu: bool, fails: bool, stays: bool, no_group: None, tmp_path: Path
) -> None:
    """NCCL's would: until all ranks of the machine leave, and they wait for this one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)

    def train() -> None:
        try:
            if fails:
                raise MemoryError("CUDA out of memory")
        finally:
            part(on_gpu=on_gpu)

    if fails:
        with pytest.raises(MemoryError):
            train()
    else:
        train()
    assert dist.is_initialized() is stays


def test_ranks_of_several_machines_wait_for_each_other_as_long_as_those_of_one(no_group: None, tmp_path: Path) -> None:
    worker = TrainWorker(0)
    assignment = WorkerAssignment(
        job={}, store_uri="", run_id="r", attempt=1, world_size=1, rendezvous=worker.open_rendezvous("127.0.0.1"),
        candidates=(), base_is_open=False, scratch=str(tmp_path),
    )  # fmt: skip
    worker._meet(assignment)
    assert worker._listening.timeout == default_pg_timeout
    assert default_pg_timeout.total_seconds() > 1000, "a machine may read a model by minutes slower than another"
