"""When held-out rows are measured while training, and what follows: a state worth keeping, or an early end."""

from __future__ import annotations

import torch

from alpaca_jobs.training import evaluation
from alpaca_jobs.training.batching import steps_per_epoch
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.evaluator import Evaluator
from alpaca_jobs.training.state import TrainState


class Evaluations:
    """The evaluations of one attempt; none without `train.eval`. Every rank has one and asks it together."""

    def __init__(self, ctx: TrainContext, state: TrainState) -> None:
        self._ctx, self._state = ctx, state
        self._evaluator = (
            None
            if ctx.evaluation is None
            else Evaluator(
                ctx.evaluation, state.engine, layout=state.layout, loss_head=state.loss_head, pad_id=state.pad_id,
                micro_batch_size=ctx.train.micro_batch_size, rank=ctx.rank, world_size=ctx.world_size,
                device=torch.device(ctx.device),
            )
        )  # fmt: skip

    def measure(self) -> bool:
        """Measure the held-out rows if it is time to; whether this state is the best so far, which has to be saved."""
        ctx, state, spec = self._ctx, self._state, self._ctx.train.eval
        if spec is None or self._evaluator is None or (state.evaluations and state.evaluations[-1][0] == state.step):
            return False
        every = spec.every_steps or steps_per_epoch(len(ctx.rows), ctx.train.global_batch_size)
        if not evaluation.is_due(state.step, every_steps=every, num_steps=state.num_steps):
            return False
        if ctx.rank == 0:
            ctx.control.evaluating()
        loss, seconds = self._evaluator.run()
        state.evaluations.append((state.step, loss))
        best = evaluation.best_evaluation(state.evaluations)
        is_best = best is not None and best[0] == state.step
        if ctx.rank == 0:
            best_step, best_loss = best or (None, None)
            ctx.control.evaluated(
                evaluation.EvaluationReport(
                    step=state.step, loss=loss, num_rows=self._evaluator.num_rows,
                    target_tokens=self._evaluator.target_tokens, seconds=seconds, is_best=is_best,
                    best_step=best_step, best_loss=best_loss,
                )
            )  # fmt: skip
        return is_best

    def enough(self) -> str | None:
        """Why training stops early, in words; None while it goes on."""
        spec = self._ctx.train.eval
        return None if spec is None else evaluation.stop_words(self._state.evaluations, spec.stop_after)
