"""One attempt's saves: begun when they are due, taken when they end, told of on rank 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpaca_jobs.training.agreement import Agreed
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.saving import SaveSchedule, is_due
from alpaca_jobs.training.schedule import learning_rate_of
from alpaca_jobs.training.state import TrainState

if TYPE_CHECKING:
    from checkpoints.torch_bridge import SaveResult


class Saves:
    """Saves of one attempt's state. Every rank has one and calls the same methods at the same steps.

    Attributes:
        schedule: what saves cost here, and how often to save by that.
        committed: the newest step that is committed, by this attempt or as what it started from; 0 for none.
    """

    def __init__(self, ctx: TrainContext, state: TrainState) -> None:
        self._ctx, self._state = ctx, state
        self.schedule = SaveSchedule(
            ctx.checkpoints.interval_steps,
            max_overhead=ctx.checkpoints.max_overhead,
            losses_per_hour=ctx.losses_per_hour,
            paid_s_per_byte=ctx.paid_s_per_byte,
        )
        self._is_fixed = ctx.checkpoints.interval_steps != "auto"
        self._requested = self.committed = state.step  # newest step a save was begun for

    def is_due(self, agreed: Agreed) -> bool:
        """Whether the interval that all ranks agreed on is over."""
        return is_due(
            self._state.step, last_saved=self._requested, interval=agreed.interval, is_fixed=self._is_fixed
        )  # fmt: skip

    def save(self) -> None:
        """Begin to save the state as it is; the next update waits until all of it has been copied."""
        state, train = self._state, self._ctx.train
        meta = state.meta(
            learning_rate=learning_rate_of(max(1, state.step), train, num_steps=state.num_steps),
            num_rows=len(self._ctx.rows),
            global_batch_size=train.global_batch_size,
        )
        self._requested = state.step
        self._ctx.checkpointer.save(
            state.step, state.engine.state(), meta=meta, fingerprint=state.fingerprint,
            optimizers=state.engine.optimizers,
        )  # fmt: skip

    def poll(self) -> None:
        """Take what has ended meanwhile."""
        self._take(self._ctx.checkpointer.poll())

    def wait(self) -> None:
        """Wait for what is under way."""
        self._take(self._ctx.checkpointer.wait())

    def save_and_wait(self) -> None:
        """Commit the state as it is, unless a save of it has begun already; wait for it."""
        if self._requested < self._state.step:
            self.save()
        self.wait()

    def finish(self) -> None:
        """Commit the last state, whatever the saves before it came to."""
        if self._requested < self._state.step or not self._state.step:
            self.save()
        self.wait()
        if self.committed < self._state.step:  # the checkpointer passed over the last save because one was in flight
            self.save()
            self.wait()

    def _take(self, results: list[SaveResult]) -> None:
        for result in results:
            if result.committed:
                self.committed = max(self.committed, result.position)
            report = self.schedule.take(result, step=self._state.step)
            if self._ctx.rank == 0:
                self._ctx.control.saved(report)
