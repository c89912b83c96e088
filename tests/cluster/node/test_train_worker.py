"""What a training worker tells its driver, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.training.metrics import StepMetrics
from cluster.events import seconds_of
from cluster.node.train_worker import TrainWorker, WorkerAssignment, WorkerControl
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
