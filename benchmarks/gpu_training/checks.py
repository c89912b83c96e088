"""What training_gpu.py checks beside speeds: losses are those of another attention, and a step waits once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from gpu_training.children import Work
from gpu_training.models import Shape
from gpu_training.runs import context, updates_of
from training_data import Control

STEPS = 6


@dataclass(frozen=True)
class Curve:
    """Losses of the first steps, and how rows lay in a tensor."""

    losses: tuple[float, ...]
    layout: str


def losses_of(work: Work, shape: Shape, keys: dict[str, Any]) -> Curve:
    """The first steps of a training."""
    control = Control()
    with context(work, shape, keys, control) as ctx, updates_of(ctx) as (state, _, updates):
        for _ in range(min(STEPS, work.all_steps)):
            updates.one_step()
        return Curve(tuple(one.loss for one in control.metrics), str(state.layout))


def waits_of(work: Work, shape: Shape, keys: dict[str, Any]) -> tuple[int, ...]:
    """How often each step after the first three waited for the GPU; what torch notices of it.

    Source: torch.cuda.set_sync_debug_mode, which warns of every operation that waits but torch.distributed's.
    """
    with context(work, shape, keys, Control()) as ctx, updates_of(ctx) as (_, _, updates):
        for _ in range(3):
            updates.one_step()
        counts = []
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(3):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    updates.one_step()
                counts.append(sum("synchroniz" in str(one.message) for one in caught))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return tuple(counts)
