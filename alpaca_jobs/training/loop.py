"""The training loop: one process per rank, the same steps on any number of them, resumed bit for bit.

A step is: plan the rows, run this rank's micro batches, reduce gradients, agree in one small all-reduce, update, maybe
save. Nothing else is state: data order, learning rate and randomness are functions of (seed, step). Here is the order
of things; the update itself is in updates.py, saves in saves.py, held-out rows in evaluating.py, a notice in
leaving.py.
"""

from __future__ import annotations

import logging
from functools import partial

import torch

from alpaca_jobs.training.agreement import Agreed, agree_on_notice
from alpaca_jobs.training.control import StoppedBy, TrainContext, TrainResult
from alpaca_jobs.training.evaluating import Evaluations
from alpaca_jobs.training.exact import exact_mode
from alpaca_jobs.training.leaving import save_for_notice
from alpaca_jobs.training.saves import Saves
from alpaca_jobs.training.state import TrainState, build_state, restore
from alpaca_jobs.training.updates import Updates

logger = logging.getLogger(__name__)


def run_training(ctx: TrainContext) -> TrainResult:
    """Train to the end, or until a notice or a stop; every rank calls it.

    Raises:
        ModelError: the base model does not exist or does not fit.
        NoGoodCommit: every candidate is damaged.
        Diverged: a loss or gradient that is not finite.
        TrainingError: a checkpoint of another training.
        CheckpointError: what a save ran into.
    """
    with exact_mode(bits=ctx.train.exactness == "bits", threads=ctx.threads):
        state = build_state(ctx)
        base, fallbacks = restore(state, ctx)
        if ctx.rank == 0:
            ctx.control.loaded(base, fallbacks)
        try:
            return _Loop(ctx, state).run()
        finally:
            state.engine.close()


class _Loop:
    """One attempt at the steps that are left."""

    def __init__(self, ctx: TrainContext, state: TrainState) -> None:
        self._ctx, self._state = ctx, state
        self._saves = Saves(ctx, state)
        self._evaluations = Evaluations(ctx, state)
        self._updates = Updates(ctx, state, self._saves)

    def run(self) -> TrainResult:
        try:
            return self._all_steps()
        finally:
            self._updates.close()

    def _all_steps(self) -> TrainResult:
        state = self._state
        known = len(state.evaluations)
        is_best = self._evaluations.measure()  # one that a notice or a kill left undone after the step that was loaded
        ends_here = len(state.evaluations) > known and self._evaluations.enough() is not None
        if is_best or ends_here:  # the newest commit holds the evaluation that ended the run: the report reads it there
            self._saves.save()
        while state.step < state.num_steps and self._evaluations.enough() is None:
            agreed = self._updates.one_step()
            self._saves.poll()
            stopped = self._react(agreed)
            if stopped is not None:
                return stopped
        self._saves.finish()
        return self._result(
            "done", self._evaluations.enough() or f"All {state.num_steps} steps are done and committed."
        )  # fmt: skip

    def _react(self, agreed: Agreed) -> TrainResult | None:
        """Save or stop, from numbers that are the same on every rank."""
        is_last = self._state.step == self._state.num_steps
        if agreed.notice_s is not None and not is_last:
            return self._leave_for_notice(agreed.notice_s)
        if agreed.stop and not is_last:
            self._saves.save_and_wait()
            return self._result("stop", f"Asked to stop: step {self._saves.committed} is committed.")
        is_best = self._evaluations.measure()
        if is_best:
            self._saves.wait()  # when_busy: skip would pass over the state that is exported
        if is_best or is_last or self._saves.is_due(agreed):
            self._saves.save()
        return None

    def _leave_for_notice(self, seconds_left: float) -> TrainResult:
        ctx = self._ctx
        agree = partial(
            agree_on_notice, rank=ctx.rank, world_size=ctx.world_size, device=torch.device(ctx.device)
        )  # fmt: skip
        words = save_for_notice(self._saves, step=self._state.step, seconds_left=seconds_left, agree=agree)
        logger.warning("%s", words)
        return self._result("notice", words)

    def _result(self, stopped_by: StoppedBy, words: str) -> TrainResult:
        return TrainResult(
            final_step=self._state.step,
            num_steps=self._state.num_steps,
            stopped_by=stopped_by,
            saved_step=self._saves.committed,
            losses=tuple(self._updates.losses),
            words=words,
            stopped_early=stopped_by == "done" and self._state.step < self._state.num_steps,
        )
