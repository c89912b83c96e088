"""When to save: every N steps, or as often as the measured cost of a save allows; and whether one fits a notice."""

from __future__ import annotations

import math
from collections import deque
from typing import Literal

FIRST_AUTO_INTERVAL = 10
"""Steps before the first save of an automatic interval: soon, because that save is what measures the cost."""
AUTO_TARGET_S = 60.0
"""An automatic interval is not shorter than this in time: more would lose less, but fill the store with requests."""
NOTICE_MARGIN = 1.5
"""A save is begun inside a notice only if this many times its measured time is left."""


class SaveSchedule:
    """Rank 0's view of saves; what it decides reaches the other ranks with the step's all-reduce.

    An automatic interval is the smallest number of steps such that (1) the time training stands still for a save is at
    most `max_overhead` of the interval, (2) a save is done before the next begins, (3) it lasts AUTO_TARGET_S or more.
    """

    def __init__(self, interval_steps: int | Literal["auto"], *, max_overhead: float) -> None:
        self._fixed = None if interval_steps == "auto" else interval_steps
        self._max_overhead = max_overhead
        self._step_s: deque[float] = deque(maxlen=32)
        self._stall_s: deque[float] = deque(maxlen=4)
        self._save_s: deque[float] = deque(maxlen=4)

    def observe_step(self, seconds: float) -> None:
        """Note how long a step took."""
        self._step_s.append(seconds)

    def observe_save(self, *, stall_s: float, seconds: float) -> None:
        """Note what a finished save cost: how long training stood still, and how long until it was committed."""
        self._stall_s.append(stall_s)
        self._save_s.append(seconds)

    @property
    def interval(self) -> int:
        """Steps between saves, as of now."""
        if self._fixed is not None:
            return self._fixed
        if not self._save_s or not self._step_s:
            return FIRST_AUTO_INTERVAL
        step_s = sorted(self._step_s)[len(self._step_s) // 2]
        wanted_s = max(max(self._stall_s) / self._max_overhead, max(self._save_s), AUTO_TARGET_S)
        return max(1, math.ceil(wanted_s / max(step_s, 1e-6)))

    @property
    def estimate_s(self) -> float:
        """Longest of the last saves, seconds; 0.0 before one was measured."""
        return max(self._save_s, default=0.0)


def is_due(step: int, *, last_saved: int, interval: int, is_fixed: bool) -> bool:
    """Whether the state after `step` is to be saved: at multiples of a fixed interval, or `interval` after the last
    save.
    """
    return step % interval == 0 if is_fixed else step - last_saved >= interval


def fits_notice(seconds_left: float, *, estimate_s: float, in_flight: bool) -> bool:
    """Whether a save begun now is likely to be committed in time.

    One in flight has to finish first, so it counts double. Nothing measured yet counts as fitting: an unfinished save
    harms nothing.
    """
    return estimate_s * (2 if in_flight else 1) * NOTICE_MARGIN <= seconds_left
