"""The training loop: one process per rank, the same steps on any number of them, resumed bit for bit.

A step is: plan the rows, run this rank's micro batches, reduce gradients, agree in one small all-reduce, update, maybe
save. Nothing else is state: data order, learning rate and randomness are functions of (seed, step).
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.training import evaluation
from alpaca_jobs.training.agreement import Told, agree, is_finite
from alpaca_jobs.training.batching import steps_per_epoch
from alpaca_jobs.training.collate import target_loss
from alpaca_jobs.training.control import StoppedBy, TrainContext, TrainResult
from alpaca_jobs.training.evaluator import Evaluator
from alpaca_jobs.training.exact import exact_mode, seed_forward
from alpaca_jobs.training.feed import StepFeed, StepInputs, make_step
from alpaca_jobs.training.flops import mfu, model_flops, peak_bf16_flops
from alpaca_jobs.training.metrics import StepMetrics
from alpaca_jobs.training.model import matrix_parameters
from alpaca_jobs.training.optimizer import clip_scale
from alpaca_jobs.training.saving import SaveSchedule, fits_notice, is_due
from alpaca_jobs.training.schedule import learning_rate_at
from alpaca_jobs.training.state import TrainState, build_state, restore

if TYPE_CHECKING:
    from checkpoints.torch_bridge import SaveResult

logger = logging.getLogger(__name__)


def run_training(ctx: TrainContext) -> TrainResult:
    """Train to the end, or until a notice or a stop; every rank calls it.

    Raises:
        ModelError: the base model does not exist or does not fit.
        NoGoodCommit: every candidate is damaged.
        TrainingError: a loss or gradient that is not finite, or a checkpoint of another training.
        CheckpointError: what a save ran into.
    """
    with exact_mode(bits=ctx.train.exactness == "bits", threads=ctx.threads):
        state = build_state(ctx)
        base, fallbacks = restore(state, ctx)
        for text in fallbacks:
            logger.warning("%s", text)
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
        self._device = torch.device(ctx.device)
        self._schedule = SaveSchedule(
            ctx.checkpoints.interval_steps,
            max_overhead=ctx.checkpoints.max_overhead,
            losses_per_hour=ctx.losses_per_hour,
        )
        self._is_fixed = ctx.checkpoints.interval_steps != "auto"
        self._requested = self._committed = state.step  # newest step a save was begun for, and one was committed for
        self._losses: list[float] = []
        self._peak_flops = peak_bf16_flops(torch.cuda.get_device_name(self._device)) if self._on_gpu else None
        self._num_parameters = matrix_parameters(state.engine.model)
        self._evaluator = (
            None
            if ctx.evaluation is None
            else Evaluator(
                ctx.evaluation, state.engine, layout=state.layout, loss_head=state.loss_head, pad_id=state.pad_id,
                micro_batch_size=ctx.train.micro_batch_size, rank=ctx.rank, world_size=ctx.world_size,
                device=self._device,
            )
        )  # fmt: skip
        self._feed = StepFeed(
            partial(
                make_step, train=ctx.train, data=ctx.rows, rank=ctx.rank, world_size=ctx.world_size,
                layout=state.layout, pad_id=state.pad_id, mask_dtype=state.engine.mask_dtype,
            ),
            last_step=state.num_steps, ahead=ctx.train.prefetch_steps, pin=self._on_gpu,
        )  # fmt: skip

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def run(self) -> TrainResult:
        try:
            return self._all_steps()
        finally:
            self._feed.close()

    def _all_steps(self) -> TrainResult:
        state = self._state
        if self._evaluate():  # one that a notice or a kill left undone after the step that was loaded
            self._save()
        while state.step < state.num_steps and self._enough() is None:
            agreed = self._one_step()
            self._take(self._ctx.checkpointer.poll())
            stopped = self._react(agreed)
            if stopped is not None:
                return stopped
        if self._requested < state.step or not state.step:
            self._save()
        self._take(self._ctx.checkpointer.wait())
        if self._committed < state.step:  # the checkpointer passed over the last save because one was in flight
            self._save()
            self._take(self._ctx.checkpointer.wait())
        return self._result("done", self._enough() or f"All {state.num_steps} steps are done and committed.")

    def _one_step(self) -> Told:
        ctx, state, train = self._ctx, self._state, self._ctx.train
        begin = time.perf_counter()
        step = state.step + 1
        ready = self._feed.take(step)
        loss_sum = self._forward_backward(ready)
        agreed = agree(
            Told(
                loss_sum=loss_sum,
                squared_norm=state.engine.squared_norm(),
                stop=ctx.control.stop_requested(),
                notice_s=ctx.control.notice(),
                interval=self._schedule.interval,
                estimate_s=self._schedule.estimate_s,
                in_flight=ctx.checkpointer.in_flight is not None,
            ),
            rank=ctx.rank,
            world_size=ctx.world_size,
            device=self._device,
        )
        loss = agreed.loss_sum / ready.divisor
        self._refuse_not_finite(agreed, step=step, loss=loss)
        learning_rate = self._learning_rate(step)
        state.engine.step(
            learning_rate=learning_rate, scale=clip_scale(agreed.squared_norm, train.max_grad_norm)
        )  # fmt: skip
        state.step = step
        state.tokens_seen += ready.tokens
        state.losses.append(loss)
        self._losses.append(loss)
        self._tell(ready, agreed, loss=loss, learning_rate=learning_rate, begin=begin)
        return agreed

    def _forward_backward(self, ready: StepInputs) -> float:
        """Gradients of the batch's loss into the model; returns this rank's sum of (weighted) cross entropies."""
        ctx, state = self._ctx, self._state
        scale = ctx.world_size / ready.divisor  # engines average gradients over ranks
        sums: list[torch.Tensor] = []
        for first_row, inputs in zip(ready.first_rows, ready.micros, strict=True):
            seed_forward(ctx.train.seed, ready.plan.step, first_row)
            loss = target_loss(state.engine.model, inputs.to(self._device), head=state.loss_head)
            sums.append(loss.detach())
            state.engine.backward(loss * scale, is_last=len(sums) == len(ready.micros))
        return float(torch.stack(sums).double().sum())

    def _learning_rate(self, step: int) -> float:
        train = self._ctx.train
        return learning_rate_at(
            step,
            peak=train.learning_rate,
            num_steps=self._state.num_steps,
            warmup_ratio=train.warmup_ratio,
            schedule=train.lr_schedule,
        )

    def _refuse_not_finite(self, agreed: Told, *, step: int, loss: float) -> None:
        if not is_finite(agreed):
            raise TrainingError(
                f"Step {step}: the loss is {loss} and the squared gradient norm {agreed.squared_norm}; training "
                f"cannot go on from there. The last good state is step {self._committed}. Lower train.learning_rate "
                f"({self._ctx.train.learning_rate:g}), or look at the rows of this step."
            )

    def _react(self, agreed: Told) -> TrainResult | None:
        """Save or stop, from numbers that are the same on every rank."""
        state = self._state
        is_last = state.step == state.num_steps
        if agreed.notice_s is not None and not is_last:
            return self._leave_for_notice(agreed, seconds_left=agreed.notice_s)
        if agreed.stop and not is_last:
            self._save_and_wait()
            return self._result("stop", f"Asked to stop: step {self._committed} is committed.")
        if self._evaluate() or is_last or is_due(
            state.step, last_saved=self._requested, interval=agreed.interval, is_fixed=self._is_fixed
        ):  # fmt: skip
            self._save()
        return None

    def _evaluate(self) -> bool:
        """Measure the held-out rows if it is time to; whether this state is the best so far, which has to be saved."""
        ctx, state, spec = self._ctx, self._state, self._ctx.train.eval
        if spec is None or self._evaluator is None or (state.evaluations and state.evaluations[-1][0] == state.step):
            return False
        every = spec.every_steps or steps_per_epoch(len(ctx.rows), ctx.train.global_batch_size)
        if not evaluation.is_due(state.step, every_steps=every, num_steps=state.num_steps):
            return False
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

    def _enough(self) -> str | None:
        """Why training stops early, in words; None while it goes on."""
        spec = self._ctx.train.eval
        return None if spec is None else evaluation.stop_words(self._state.evaluations, spec.stop_after)

    def _leave_for_notice(self, agreed: Told, *, seconds_left: float) -> TrainResult:
        known = f"a save takes {agreed.estimate_s:.1f} s here" if agreed.estimate_s else "no save was measured yet"
        if fits_notice(seconds_left, estimate_s=agreed.estimate_s, in_flight=agreed.in_flight):
            self._save_and_wait()
            words = f"Notice with {seconds_left:.1f} s left ({known}): step {self._committed} was saved."
        else:
            self._take(self._ctx.checkpointer.wait())
            words = (
                f"Notice with {seconds_left:.1f} s left, but {known}, so none was begun: step {self._committed} is "
                f"the newest committed, {self._state.step - self._committed} steps will be repeated."
            )
        logger.warning("%s", words)
        return self._result("notice", words)

    def _save_and_wait(self) -> None:
        if self._requested < self._state.step:
            self._save()
        self._take(self._ctx.checkpointer.wait())

    def _save(self) -> None:
        state, train = self._state, self._ctx.train
        meta = state.meta(
            learning_rate=self._learning_rate(max(1, state.step)),
            num_rows=len(self._ctx.rows),
            global_batch_size=train.global_batch_size,
        )
        self._requested = state.step
        self._ctx.checkpointer.save(state.step, state.engine.state(), meta=meta, fingerprint=state.fingerprint)

    def _take(self, results: list[SaveResult]) -> None:
        for result in results:
            if result.committed:
                self._committed = max(self._committed, result.position)
            report = self._schedule.take(result, step=self._state.step)
            if self._ctx.rank == 0:
                self._ctx.control.saved(report)

    def _tell(self, ready: StepInputs, agreed: Told, *, loss: float, learning_rate: float, begin: float) -> None:
        """Rank 0 reports the step."""
        seconds = time.perf_counter() - begin
        self._schedule.observe_step(seconds)
        if self._ctx.rank:
            return
        tokens, world_size = ready.tokens, self._ctx.world_size
        config = self._state.engine.model.config
        flops = model_flops(
            num_parameters=self._num_parameters,
            num_layers=int(getattr(config, "num_hidden_layers", 0)),
            hidden_size=int(getattr(config, "hidden_size", 0)),
            tokens=tokens,
            sum_of_squared_lengths=ready.squared_lengths,
        )
        self._ctx.control.stepped(
            StepMetrics(
                step=ready.plan.step,
                epoch=ready.plan.epoch,
                loss=loss,
                learning_rate=learning_rate,
                grad_norm=agreed.squared_norm**0.5,
                tokens=tokens,
                target_tokens=ready.num_targets,
                seconds=seconds,
                tokens_per_second=tokens / seconds,
                tokens_per_second_per_gpu=tokens / seconds / world_size,
                mfu=mfu(flops, seconds=seconds, peak_flops=self._peak_flops, num_devices=world_size),
            )
        )

    def _result(self, stopped_by: StoppedBy, words: str) -> TrainResult:
        return TrainResult(
            final_step=self._state.step,
            num_steps=self._state.num_steps,
            stopped_by=stopped_by,
            saved_step=self._committed,
            losses=tuple(self._losses),
            words=words,
            stopped_early=stopped_by == "done" and self._state.step < self._state.num_steps,
        )
