"""The one small all-reduce of a step: every rank tells the others its part, and all get the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Told:
    """What one rank says at the end of a step. Interval and estimate are rank 0's; the others' are ignored.

    Attributes:
        loss_sum: sum of cross entropies over this rank's target tokens.
        squared_norm: of this rank's shards of the gradients.
        stop: whether this rank was asked to stop.
        notice_s: seconds until this rank's machine is taken away, or None.
        interval: steps between saves.
        estimate_s: measured time of a save.
    """

    loss_sum: float
    squared_norm: float
    stop: bool
    notice_s: float | None
    interval: int
    estimate_s: float


def agree(mine: Told, *, rank: int, world_size: int, device: torch.device) -> Told:
    """Add up sums, take rank 0's plan for saves, any rank's stop and the shortest notice; the same on every rank.

    float64: sums of float32 losses keep all their digits. A collective: every rank has to call it once per step.
    """
    first = rank == 0
    notices = [0.0] * world_size
    notices[rank] = 0.0 if mine.notice_s is None else 1.0 + max(0.0, mine.notice_s)  # 0 stands for no notice
    told = torch.tensor(
        [
            mine.loss_sum,
            mine.squared_norm,
            float(mine.stop),
            float(mine.interval) if first else 0.0,
            mine.estimate_s if first else 0.0,
            *notices,
        ],
        dtype=torch.float64,
        device=device,
    )
    dist.all_reduce(told)
    loss_sum, squared_norm, stop, interval, estimate_s, *notices = told.tolist()
    given = [notice - 1.0 for notice in notices if notice > 0.0]
    return Told(
        loss_sum=loss_sum,
        squared_norm=squared_norm,
        stop=stop > 0.0,
        notice_s=min(given, default=None),
        interval=round(interval),
        estimate_s=estimate_s,
    )


def agree_on_notice(
    seconds_left: float, estimate_s: float, *, rank: int, world_size: int, device: torch.device
) -> tuple[float, float]:
    """The least of all ranks' seconds left, and rank 0's estimate of a save; a collective."""
    nothing = Told(0.0, 0.0, stop=False, notice_s=max(0.0, seconds_left), interval=0, estimate_s=estimate_s)
    agreed = agree(nothing, rank=rank, world_size=world_size, device=device)
    return agreed.notice_s or 0.0, agreed.estimate_s


def is_finite(told: Told) -> bool:
    """Whether loss and gradients are numbers one can go on with."""
    return math.isfinite(told.loss_sum) and math.isfinite(told.squared_norm)
