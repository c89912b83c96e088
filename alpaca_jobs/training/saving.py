"""When to save: every N steps, or as often as the measured cost of a save and the hazard of the machines make best.

Also whether a save fits a notice, and what is told of each save.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass
from typing import Literal

from checkpoints.interval import IntervalTuner
from checkpoints.torch_bridge import SaveResult

AUTO_LEAST_S = 60.0
"""An automatic interval is not shorter than this in time: more would lose less, but fill the store with requests."""
AUTO_MOST_S = 600.0
"""Nor longer: what no hazard counts (a cable, a bug, a Ctrl-C) takes at most ten minutes of work with it."""
NOTICE_MARGIN = 1.5
"""A save is begun inside a notice only if this many times its measured time is left."""


@dataclass(frozen=True)
class SaveReport(SaveResult):
    """One finished save, as it is told to the run's events.

    Attributes:
        lag_steps: steps that were trained while it was under way: so many more would be lost with the machine then.
        interval_steps: steps until the next one, as of now.
        interval_by: what decided that: fixed (by the job), first (nothing is measured yet), losses (the hazard), price
            (of a save that is billed), overhead (the target), save (one may not begin before the last has ended),
            least, most (bounds).
    """

    lag_steps: int
    interval_steps: int
    interval_by: str


class SaveSchedule:
    """Rank 0's view of saves; what it decides reaches the other ranks with the step's all-reduce.

    An automatic interval makes the expected loss least (Daly; checkpoints/interval.py) from the measured stall, the
    measured time of a save and `losses_per_hour`, within bounds: training stands still for at most `max_overhead` of
    the time, a save has ended before the next begins, AUTO_LEAST_S, AUTO_MOST_S. Saves that are billed, since they go
    to a store in another region, are as rare as makes the sum of that bill and of the work lost with a machine least.
    When state is saved changes no bit of it.

    Args:
        losses_per_hour: how often this job's machines are expected to be taken away; 0.0 for never.
        paid_s_per_byte: what storing a byte is billed, as seconds of the machines at their price (cluster/egress.py).
    """

    def __init__(
        self,
        interval_steps: int | Literal["auto"],
        *,
        max_overhead: float,
        losses_per_hour: float = 0.0,
        paid_s_per_byte: float = 0.0,
    ) -> None:
        self._fixed = None if interval_steps == "auto" else interval_steps
        self._tuner = IntervalTuner(
            mean_time_between_losses_s=3600 / losses_per_hour if losses_per_hour > 0 else math.inf,
            max_overhead=max_overhead,
            least_s=AUTO_LEAST_S,
            most_s=AUTO_MOST_S,
        )
        self._paid_s_per_byte = paid_s_per_byte
        self._save_s: deque[float] = deque(maxlen=4)

    def observe_step(self, seconds: float) -> None:
        """Note how long a step took."""
        self._tuner.observe_step(seconds)

    def observe_save(self, *, stall_s: float, seconds: float, stored_bytes: int = 0) -> None:
        """Note what a committed save cost: how long training stood still, how long until it was committed, and what was
        put into the store for it.
        """
        self._tuner.observe_save(stall_s=stall_s, seconds=seconds, paid_s=stored_bytes * self._paid_s_per_byte)
        self._save_s.append(seconds)

    @property
    def interval(self) -> int:
        """Steps between saves, as of now."""
        return self._fixed if self._fixed is not None else self._tuner.interval_steps()

    @property
    def interval_by(self) -> str:
        """What decided `interval`; see SaveReport."""
        if self._fixed is not None:
            return "fixed"
        chosen = self._tuner.interval()
        return "first" if chosen is None else chosen.decided_by

    @property
    def estimate_s(self) -> float:
        """Longest of the last saves, seconds; 0.0 before one was measured."""
        return max(self._save_s, default=0.0)

    def take(self, result: SaveResult, *, step: int) -> SaveReport:
        """Note a save that has ended, and say what is told of it; `step`: the last that was trained."""
        if result.committed:
            self.observe_save(
                stall_s=result.stall_s, seconds=result.seconds, stored_bytes=result.stored_bytes
            )  # fmt: skip
        return SaveReport(
            **asdict(result),
            lag_steps=max(0, step - result.position),
            interval_steps=self.interval,
            interval_by=self.interval_by,
        )


def is_due(step: int, *, last_saved: int, interval: int, is_fixed: bool) -> bool:
    """Whether the state after `step` is to be saved: at multiples of a fixed interval, or `interval` after the last
    save.
    """
    return step % interval == 0 if is_fixed else step - last_saved >= interval


def fits_notice(seconds_left: float, *, estimate_s: float) -> bool:
    """Whether a save begun now, with none under way, is likely to be committed in time.

    Nothing measured yet counts as fitting: an unfinished save harms nothing.
    """
    return estimate_s * NOTICE_MARGIN <= seconds_left
