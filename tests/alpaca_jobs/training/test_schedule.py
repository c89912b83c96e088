"""The learning rate against transformers' own schedulers, at every step."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from alpaca_jobs.training.schedule import learning_rate_at


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("num_steps", "warmup_ratio"), [(50, 0.03), (50, 0.5), (7, 0.0), (1, 0.03)])
def test_the_rate_is_the_one_transformers_uses(
    schedule: Literal["cosine", "linear", "constant"], num_steps: int, warmup_ratio: float
) -> None:
    import math

    from transformers.optimization import (
        get_constant_schedule_with_warmup,
        get_cosine_schedule_with_warmup,
        get_linear_schedule_with_warmup,
    )

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    warmup = math.ceil(num_steps * warmup_ratio)
    if schedule == "cosine":
        reference = get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)
    elif schedule == "linear":
        reference = get_linear_schedule_with_warmup(optimizer, warmup, num_steps)
    else:
        reference = get_constant_schedule_with_warmup(optimizer, warmup)
    for step in range(1, num_steps + 1):
        ours = learning_rate_at(
            step, peak=2e-5, num_steps=num_steps, warmup_ratio=warmup_ratio, schedule=schedule
        )  # fmt: skip
        assert ours == pytest.approx(reference.get_last_lr()[0], rel=1e-12, abs=0)
        optimizer.step()
        reference.step()
