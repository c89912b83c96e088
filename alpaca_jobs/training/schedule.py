"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

from alpaca_jobs.spec import TrainSpec


def learning_rate_at(
    step: int,
    *,
    peak: float,
    num_steps: int,
    warmup_ratio: float,
    schedule: Literal["cosine", "linear", "constant"],
) -> float:
    """Learning rate of the update that makes `step` (from 1).

    Warm-up rises linearly over ceil(num_steps * warmup_ratio) updates, and the first update has rate 0, as in the
    published recipe. Source: transformers 5.17, `optimization.py`, get_{cosine,linear,constant}_schedule_with_warmup,
    whose `current_step` counts updates done before this one.
    """
    done = step - 1
    warmup = math.ceil(num_steps * warmup_ratio)
    if done < warmup:
        return peak * done / max(1, warmup)
    if schedule == "constant":
        return peak
    progress = (done - warmup) / max(1, num_steps - warmup)
    if schedule == "linear":
        return peak * max(0.0, 1.0 - progress)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def learning_rate_of(step: int, train: TrainSpec, *, num_steps: int) -> float:
    """The same for a job's own peak, warm-up and schedule."""
    return learning_rate_at(
        step, peak=train.learning_rate, num_steps=num_steps, warmup_ratio=train.warmup_ratio,
        schedule=train.lr_schedule,
    )  # fmt: skip
