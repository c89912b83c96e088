"""The one small all-reduce of a step: every rank tells the others its part, and all get the same numbers.

Reading its result is the only time in a step that a process waits for its GPU: loss and norm go into it as they lie on
the device, and what the process itself knows is copied there from page-locked memory, without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Told:
    """What one rank says at the end of a step. Interval and estimate are rank 0's; the others' are ignored.

    Attributes:
        loss_sum: sum of cross entropies over this rank's target tokens; a number, or a scalar tensor where it lies.
        squared_norm: of this rank's shards of the gradients; likewise.
        stop: whether this rank was asked to stop.
        notice_s: seconds until this rank's machine is taken away, or None.
        interval: steps between saves.
        estimate_s: measured time of a save.
        memory_bytes: the most memory this rank has had.
    """

    loss_sum: Tensor | float
    squared_norm: Tensor | float
    stop: bool
    notice_s: float | None
    interval: int
    estimate_s: float
    memory_bytes: int = 0


@dataclass(frozen=True)
class Agreed:
    """What all ranks know after it: sums of losses and norms, whether any was asked to stop, the shortest notice, rank
    0's plan for saves, and the fullest rank's memory.
    """

    loss_sum: float
    squared_norm: float
    stop: bool
    notice_s: float | None
    interval: int
    estimate_s: float
    memory_bytes: int


def agree(mine: Told, *, rank: int, world_size: int, device: torch.device) -> Agreed:
    """Add up sums, take rank 0's plan for saves, any rank's stop and the shortest notice; the same on every rank.

    float64: sums of float32 losses keep all their digits. A collective: every rank has to call it once per step.
    """
    first = rank == 0
    notices, memories = [0.0] * world_size, [0.0] * world_size
    notices[rank] = 0.0 if mine.notice_s is None else 1.0 + max(0.0, mine.notice_s)  # 0 stands for no notice
    memories[rank] = float(mine.memory_bytes)
    told = _on_device(
        [
            mine.loss_sum,
            mine.squared_norm,
            float(mine.stop),
            float(mine.interval) if first else 0.0,
            mine.estimate_s if first else 0.0,
            *notices,
            *memories,
        ],
        device,
    )
    dist.all_reduce(told)
    loss_sum, squared_norm, stop, interval, estimate_s, *each = told.tolist()
    given = [notice - 1.0 for notice in each[:world_size] if notice > 0.0]
    return Agreed(
        loss_sum=loss_sum,
        squared_norm=squared_norm,
        stop=stop > 0.0,
        notice_s=min(given, default=None),
        interval=round(interval),
        estimate_s=estimate_s,
        memory_bytes=round(max(each[world_size:])),
    )


def agree_on_notice(
    seconds_left: float, estimate_s: float, *, rank: int, world_size: int, device: torch.device
) -> tuple[float, float]:
    """The least of all ranks' seconds left, and rank 0's estimate of a save; a collective."""
    nothing = Told(0.0, 0.0, stop=False, notice_s=max(0.0, seconds_left), interval=0, estimate_s=estimate_s)
    agreed = agree(nothing, rank=rank, world_size=world_size, device=device)
    return agreed.notice_s or 0.0, agreed.estimate_s


def is_finite(agreed: Agreed) -> bool:
    """Whether loss and gradients are numbers one can go on with."""
    return math.isfinite(agreed.loss_sum) and math.isfinite(agreed.squared_norm)


def _on_device(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Scalars as one float64 tensor of the device; those that lie there already never come to the host."""
    there = {
        place: value
        for place, value in enumerate(values)
        if isinstance(value, Tensor) and value.device.type == device.type != "cpu"
    }
    known = [0.0 if place in there else float(value) for place, value in enumerate(values)]
    told = torch.tensor(known, dtype=torch.float64)
    if device.type == "cuda":
        told = told.pin_memory()
    told = told.to(device, non_blocking=True)
    for place, value in there.items():
        told[place] = value
    return told
