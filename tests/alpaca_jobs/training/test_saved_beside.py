"""What of an engine's state is copied while training goes on: all that its optimizer changes, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.engines.fsdp import Fsdp
from alpaca_jobs.training.engines.replicated import Replicated
from alpaca_jobs.training.optimizer import local_of
from checkpoints.torch_overlap import owned_by


def _engine(kind: str, dtype: str) -> Any:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    train = TrainSpec(model="m", dtype=dtype)
    if kind == "fsdp":
        return Fsdp(model, train, device=torch.device("cpu"), ranks_per_node=1)
    return Replicated(model, train, world_size=1)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("fsdp", "float32"), ("fsdp", "bfloat16"), ("ddp", "float32"), ("ddp", "bfloat16")]
)
def test_weights_and_moments_are_their_optimizers_and_frozen_ones_and_buffers_are_not(
    one_rank: None, kind: str, dtype: str
) -> None:
    engine = _engine(kind, dtype)
    owned, state = owned_by(engine.optimizers), engine.state()
    held = {name for name, tensor in state["model"].items() if owned.hold(local_of(tensor))}
    assert held == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    for kind_of_moment in ("exp_avg", "exp_avg_sq"):
        assert all(owned.hold(local_of(tensor)) for tensor in state["optimizer"][kind_of_moment].values())
    assert {"1.running_mean", "2.weight"} < set(state["model"])
