"""What a rank computes in a step, made ready while the step before runs: planned, collated and laid out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.batching import StepPlan, plan_step, steps_per_epoch
from alpaca_jobs.training.collate import Inputs, Layout, collate, lay_out
from alpaca_jobs.training.data import EpochRows, TrainingData


@dataclass(frozen=True)
class StepInputs:
    """One rank's part of one step, on the CPU.

    Attributes:
        micros: the forward passes of this rank.
        first_rows: the first row of each, which seeds its randomness; -1 for an empty one.
        tokens: of the global batch, padding excluded.
        squared_lengths: sum over the rows of the global batch, for the count of FLOPs.
        num_targets: target tokens of the global batch.
        divisor: what the sum of losses over all ranks is divided by to give the step's loss.
    """

    plan: StepPlan
    micros: tuple[Inputs, ...]
    first_rows: tuple[int, ...]
    tokens: int
    squared_lengths: int
    num_targets: int
    divisor: float


def make_step(
    step: int,
    *,
    train: TrainSpec,
    data: TrainingData,
    rank: int,
    world_size: int,
    layout: Layout,
    pad_id: int,
    mask_dtype: torch.dtype = torch.float32,
) -> StepInputs:
    """Plan a step (from 1) and lay out this rank's micro batches."""
    seen = data.of_epoch((step - 1) // steps_per_epoch(len(data), train.global_batch_size))
    plan = plan_step(
        step,
        seed=train.seed,
        lengths=seen.lengths,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size,
        world_size=world_size,
    )
    rows = list(plan.rows)
    num_targets = int(seen.target_counts[rows].sum())
    weights = None if train.loss_average == "token" else micro_batch_weights(plan.rows, seen, train.micro_batch_size)
    micros = tuple(
        lay_out(
            collate(seen, micro),
            layout=layout,
            pad_id=pad_id,
            mask_dtype=mask_dtype,
            row_weights=None if weights is None else [weights[row] for row in micro],
        )
        for micro in plan.ranks[rank]
    )
    return StepInputs(
        plan=plan,
        micros=micros,
        first_rows=tuple(micro[0] if micro else -1 for micro in plan.ranks[rank]),
        tokens=int(seen.lengths[rows].sum()),
        squared_lengths=int(seen.squared_lengths[rows].sum()),
        num_targets=num_targets,
        divisor=float(max(1, num_targets)) if weights is None else 1.0,
    )


def micro_batch_weights(rows: tuple[int, ...], data: EpochRows, micro_batch_size: int) -> dict[int, float]:
    """What each target token of a row counts when losses are averaged per micro batch first, then over micro batches.

    The arithmetic of the published recipe of 2023: a micro batch is `micro_batch_size` rows in the order of the epoch,
    its loss the mean over its target tokens, and accumulation and ranks average these means, so that a token among few
    counts more than one among many. Source: transformers 4.28, trainer.py, training_step (loss divided by
    gradient_accumulation_steps) and FSDP's mean over ranks.

    Weights follow rows, whichever forward pass they are computed in: the result does not depend on the world size.
    """
    groups = [rows[begin : begin + micro_batch_size] for begin in range(0, len(rows), micro_batch_size)]
    weights: dict[int, float] = {}
    for group in groups:
        targets = int(data.target_counts[list(group)].sum())
        weights.update(dict.fromkeys(group, 1.0 / (len(groups) * max(1, targets))))
    return weights


class StepFeed:
    """Steps in order, each made by a thread while the one before is computed."""

    def __init__(self, make: Callable[[int], StepInputs], *, last_step: int, ahead: int, pin: bool = False) -> None:
        self._make, self._last, self._ahead, self._pin = make, last_step, ahead, pin
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collate") if ahead else None
        self._waiting: dict[int, Future[StepInputs]] = {}

    def take(self, step: int) -> StepInputs:
        """The inputs of a step; the following ones are begun."""
        if self._thread is None:
            return self._made(step)
        for number in range(step, min(step + self._ahead, self._last) + 1):
            if number not in self._waiting:
                self._waiting[number] = self._thread.submit(self._made, number)
        return self._waiting.pop(step).result()

    def close(self) -> None:
        """Drop what was made ahead."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def _made(self, step: int) -> StepInputs:
        made = self._make(step)
        if not self._pin:
            return made
        return replace(made, micros=tuple(inputs.pinned() for inputs in made.micros))
