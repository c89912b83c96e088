"""Which rows each step trains on, and who computes them: arithmetic alone, no state, no torch.

Steps count from 1; step N is the update after which N updates are done. Every epoch is one permutation of all rows,
seeded by (seed, epoch) and cut into batches of `global_batch_size`; the last batch of an epoch may be short, so every
row is seen exactly once per epoch (the published Hugging Face recipe does the same). Which rows a step sees depends on
nothing else: not on the world size, the micro batch or the attempt. Only the split of a batch over ranks and micro
batches does.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Micro = tuple[int, ...]
"""Row indices of one forward pass; () is an empty micro batch, which takes part with no weight."""


@dataclass(frozen=True)
class StepPlan:
    """The rows of one optimizer step and their split.

    Attributes:
        step: from 1.
        epoch: from 0.
        rows: the global batch, in the order of the epoch's permutation.
        ranks: ranks[rank][micro] = row indices; every rank has the same number of micro batches.
    """

    step: int
    epoch: int
    rows: tuple[int, ...]
    ranks: tuple[tuple[Micro, ...], ...]


def steps_per_epoch(num_rows: int, global_batch_size: int) -> int:
    """Optimizer steps of one epoch; the last one may be short."""
    return -(-num_rows // global_batch_size)


def total_steps(num_rows: int, *, global_batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Steps of the whole training: `epochs` passes rounded up to a step, and at most `max_steps`.

    Args:
        num_rows: rows in the data, at least 1.
        epochs: passes over the rows; a fraction ends inside an epoch.
    """
    steps = max(1, math.ceil(epochs * steps_per_epoch(num_rows, global_batch_size)))
    return steps if max_steps is None else min(steps, max_steps)


def rows_seen(step: int, num_rows: int, global_batch_size: int) -> int:
    """Rows trained on after `step` steps, repeats over epochs counted."""
    epochs, rest = divmod(step, steps_per_epoch(num_rows, global_batch_size))
    return epochs * num_rows + min(rest * global_batch_size, num_rows)


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_rows: int) -> IntArray:
    """The permutation of one epoch, (num_rows,) int64, read-only; a function of its arguments alone.

    PCG64 and Generator.permutation are written out rather than `default_rng`, whose choice numpy may change.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    order = np.random.Generator(bits).permutation(num_rows).astype(np.int64)
    order.flags.writeable = False
    return order


def global_batch(step: int, *, seed: int, num_rows: int, global_batch_size: int) -> tuple[int, tuple[int, ...]]:
    """Epoch (from 0) and rows of a step (from 1)."""
    if step < 1 or num_rows < 1:
        raise ValueError(f"steps count from 1 and need rows: got step {step} of {num_rows} rows")
    epoch, index = divmod(step - 1, steps_per_epoch(num_rows, global_batch_size))
    order = epoch_order(seed, epoch, num_rows)
    return epoch, tuple(order[index * global_batch_size : (index + 1) * global_batch_size].tolist())


def plan_step(
    step: int,
    *,
    seed: int,
    lengths: Sequence[int] | IntArray,
    global_batch_size: int,
    micro_batch_size: int,
    world_size: int,
) -> StepPlan:
    """Choose the rows of a step and split them over ranks and micro batches.

    Rows go longest first to the rank with the fewest tokens so far (ties: the lower row index goes first, the lower
    rank gets it), so no rank carries more than the longest row beyond the lightest one. The same rule then spreads a
    rank's rows over its micro batches, of at most `micro_batch_size` rows each. The longest list of micro batches
    decides for all ranks: the others add micro batches rather than wait, and those beyond their rows are empty.

    Args:
        step: from 1.
        lengths: tokens of every row, (num_rows,).
        micro_batch_size: most rows of one forward pass.
    """
    epoch, rows = global_batch(step, seed=seed, num_rows=len(lengths), global_batch_size=global_batch_size)
    ranks = split_over_ranks(rows, lengths, micro_batch_size=micro_batch_size, world_size=world_size)
    return StepPlan(step=step, epoch=epoch, rows=rows, ranks=ranks)


def split_over_ranks(
    rows: Sequence[int], lengths: Sequence[int] | IntArray, *, micro_batch_size: int, world_size: int
) -> tuple[tuple[Micro, ...], ...]:
    """Rows as micro batches of every rank, equally many on each, by the rule that `plan_step` states."""
    tokens = {row: int(lengths[row]) for row in rows}
    per_rank = spread(rows, tokens, num_bins=world_size, max_rows=len(rows))
    num_micros = max(1, *(math.ceil(len(mine) / micro_batch_size) for mine in per_rank))
    return tuple(tuple(spread(mine, tokens, num_bins=num_micros, max_rows=micro_batch_size)) for mine in per_rank)


def spread(rows: Sequence[int], tokens: dict[int, int], *, num_bins: int, max_rows: int) -> list[Micro]:
    """Put rows into bins, longest first into the lightest bin that has room; within a bin by row index.

    Raises:
        ValueError: more rows than the bins can hold.
    """
    if len(rows) > num_bins * max_rows:
        raise ValueError(f"{len(rows)} rows do not fit into {num_bins} bins of {max_rows}")
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    light = [(0, index) for index in range(num_bins)]
    for row in sorted(rows, key=lambda row: (-tokens[row], row)):
        load, index = heapq.heappop(light)
        bins[index].append(row)
        if len(bins[index]) < max_rows:
            heapq.heappush(light, (load + tokens[row], index))
    return [tuple(sorted(members)) for members in bins]
