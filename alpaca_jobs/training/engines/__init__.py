"""Engines: what spreads a model over ranks, behind one small protocol (protocol.py). `make_engine` makes the job's."""

from __future__ import annotations

from typing import Any

import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.base_weights import Fill
from alpaca_jobs.training.engines.choice import choose_engine
from alpaca_jobs.training.engines.protocol import Engine

__all__ = ["Engine", "make_engine"]


def make_engine(
    model: Any,
    train: TrainSpec,
    *,
    device: torch.device,
    world_size: int,
    ranks_per_node: int,
    fill: Fill | None = None,
) -> Engine:
    """The engine of `train.engine` around a model that every rank has built alike; collective.

    Args:
        fill: engines fsdp and deepspeed-zero3: gives a model without memory its weights while it is spread.

    Raises:
        TrainingError: the engine cannot do what the job asks on this many ranks.
    """
    name, _ = choose_engine(train, world_size=world_size)
    if name.startswith("deepspeed"):
        from alpaca_jobs.training.engines.deepspeed import DeepSpeedZero

        return DeepSpeedZero(model, train, stage=int(name[-1]), device=device, fill=fill)
    if name == "fsdp":
        from alpaca_jobs.training.engines.fsdp import Fsdp

        return Fsdp(model, train, device=device, ranks_per_node=ranks_per_node, fill=fill)
    from alpaca_jobs.training.engines.replicated import Replicated

    return Replicated(model, train, world_size=world_size)
