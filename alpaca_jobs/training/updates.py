"""Optimizer updates one after the other: forward and backward, one small all-reduce, the update, its metrics."""

from __future__ import annotations

import time
from functools import partial

import torch

from alpaca_jobs.errors import Diverged
from alpaca_jobs.training.agreement import Agreed, Told, agree, is_finite
from alpaca_jobs.training.collate import target_loss
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.exact import seed_forward
from alpaca_jobs.training.faults import run_out_of_memory
from alpaca_jobs.training.feed import StepFeed, StepInputs, make_step
from alpaca_jobs.training.flops import mfu, model_flops, peak_bf16_flops
from alpaca_jobs.training.metrics import StepMetrics
from alpaca_jobs.training.model import matrix_parameters
from alpaca_jobs.training.optimizer import clip_scale
from alpaca_jobs.training.peak_memory import peak_memory_bytes
from alpaca_jobs.training.saves import Saves
from alpaca_jobs.training.schedule import learning_rate_of
from alpaca_jobs.training.state import TrainState


class Updates:
    """Makes a rank's part of every update. Every rank has one and calls `one_step` together.

    Attributes:
        losses: of the steps made here, in order.
    """

    def __init__(self, ctx: TrainContext, state: TrainState, saves: Saves) -> None:
        self._ctx, self._state, self._saves = ctx, state, saves
        self._device = torch.device(ctx.device)
        on_gpu = self._device.type == "cuda"
        self.losses: list[float] = []
        self._peak_flops = peak_bf16_flops(torch.cuda.get_device_name(self._device)) if on_gpu else None
        self._num_parameters = matrix_parameters(state.engine.model)
        self._feed = StepFeed(
            partial(
                make_step, train=ctx.train, data=ctx.rows, rank=ctx.rank, world_size=ctx.world_size,
                layout=state.layout, pad_id=state.pad_id, mask_dtype=state.engine.mask_dtype,
            ),
            last_step=state.num_steps, ahead=ctx.train.prefetch_steps, pin=on_gpu,
        )  # fmt: skip

    def close(self) -> None:
        """Drop the batches that were made ahead."""
        self._feed.close()

    def one_step(self) -> Agreed:
        """Make the next update; returns what the ranks agreed on.

        Raises:
            Diverged: the loss or the gradient is not finite.
        """
        ctx, state, train = self._ctx, self._state, self._ctx.train
        begin = time.perf_counter()
        step = state.step + 1
        ready = self._feed.take(step)
        data_wait_s = time.perf_counter() - begin
        run_out_of_memory(rank=ctx.rank, step=step, micro_batch=train.micro_batch_size)
        loss_sum = self._forward_backward(ready)
        agreed = agree(
            Told(
                loss_sum=loss_sum,
                squared_norm=state.engine.squared_norm(),
                stop=ctx.control.stop_requested(),
                notice_s=ctx.control.notice(),
                interval=self._saves.schedule.interval,
                estimate_s=self._saves.schedule.estimate_s,
                memory_bytes=peak_memory_bytes(self._device),
            ),
            rank=ctx.rank,
            world_size=ctx.world_size,
            device=self._device,
        )
        loss = agreed.loss_sum / ready.divisor
        self._refuse_not_finite(agreed, step=step, loss=loss)
        learning_rate = learning_rate_of(step, train, num_steps=state.num_steps)
        state.engine.step(
            learning_rate=learning_rate, scale=clip_scale(agreed.squared_norm, train.max_grad_norm)
        )  # fmt: skip
        state.step = step
        state.tokens_seen += ready.tokens
        state.losses.append(loss)
        self.losses.append(loss)
        self._tell(ready, agreed, loss=loss, learning_rate=learning_rate, begin=begin, data_wait_s=data_wait_s)
        return agreed

    def _forward_backward(self, ready: StepInputs) -> torch.Tensor:
        """Gradients of the batch's loss into the model; returns this rank's sum of (weighted) cross entropies, float64
        and a scalar on the device.
        """
        ctx, state = self._ctx, self._state
        scale = ctx.world_size / ready.divisor  # engines average gradients over ranks
        sums: list[torch.Tensor] = []
        for first_row, inputs in zip(ready.first_rows, ready.micros, strict=True):
            seed_forward(ctx.train.seed, ready.plan.step, first_row)
            loss = target_loss(state.engine.model, inputs.to(self._device), head=state.loss_head)
            sums.append(loss.detach())
            state.engine.backward(loss * scale, is_last=len(sums) == len(ready.micros))
        return torch.stack(sums).double().sum()

    def _refuse_not_finite(self, agreed: Agreed, *, step: int, loss: float) -> None:
        if not is_finite(agreed):
            raise Diverged(
                f"Step {step}: the loss is {loss} and the squared gradient norm {agreed.squared_norm}; training "
                f"cannot go on from there. The last good state is step {self._saves.committed}. Look at the rows of "
                f"this step, or lower train.learning_rate ({self._ctx.train.learning_rate:g}): that is another "
                "training, so launch it as a new run. `alpaca-jobs export RUN --rows FILE` has this run's rows."
            )

    def _tell(
        self,
        ready: StepInputs,
        agreed: Agreed,
        *,
        loss: float,
        learning_rate: float,
        begin: float,
        data_wait_s: float,
    ) -> None:
        """Rank 0 reports the step."""
        seconds = time.perf_counter() - begin
        self._saves.schedule.observe_step(seconds)
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
                peak_memory_bytes=agreed.memory_bytes,
                data_wait_s=data_wait_s,
            )
        )
