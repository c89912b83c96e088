"""How often to save: from what a save costs and how often machines are lost. Pure.

tuner = IntervalTuner(mean_time_between_losses_s=2 * 3600, max_overhead=0.01)
tuner.observe_step(1.2); tuner.observe_save(stall_s=0.4, seconds=35)
tuner.interval_steps()
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

REMEMBERED = 20
"""Measurements whose median counts: enough to pass over a slow one, few enough to follow a change."""
UNTIL_MEASURED_STEPS = 10
"""Steps before the first save, when nothing is known yet: soon, so that there is something to measure."""


PAID_MOST_S = 3600.0
"""The upper bound of an interval between saves that are billed: an hour of work, at the most, for fewer of them."""


def daly_interval_s(cost_s: float, mean_time_between_losses_s: float) -> float:
    """Seconds of work between saves that make the expected total time least.

    Args:
        cost_s: what one save costs the training: the stall, since storing goes on in the background.
        mean_time_between_losses_s: of the whole job (of n machines alike: one machine's divided by n).

    Source: J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
    Generation Computer Systems 22 (2006) 303-312, eq. 37; its first term is J. W. Young's, CACM 17 (1974) 530-531.
    """
    if cost_s < 0 or mean_time_between_losses_s <= 0:
        raise ValueError(f"no such cost or time: {cost_s:g} s, {mean_time_between_losses_s:g} s")
    if math.isinf(mean_time_between_losses_s):
        return math.inf
    if cost_s >= 2 * mean_time_between_losses_s:
        return mean_time_between_losses_s
    ratio = cost_s / (2 * mean_time_between_losses_s)
    young_s = math.sqrt(2 * cost_s * mean_time_between_losses_s)
    return young_s * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost_s


@dataclass(frozen=True)
class Interval:
    """Time between saves, and what decided it: "losses" (Daly), "price" (Daly, of saves that are billed), "overhead",
    "save" (back-pressure), "least", "most".
    """

    seconds: float
    decided_by: str


def choose_interval(
    *,
    stall_s: float,
    save_s: float,
    mean_time_between_losses_s: float,
    paid_s: float = 0.0,
    max_overhead: float = 0.01,
    least_s: float = 1.0,
    most_s: float = 1800.0,
) -> Interval:
    """The interval that costs least, within bounds.

    Args:
        stall_s, save_s: how long training stands still for a save, and how long until it is committed.
        mean_time_between_losses_s: math.inf where machines are not taken away.
        paid_s: what a save is billed, as seconds of the machines at their price. Daly's interval is of a cost, whatever
            it consists of; `most_s` gives way to it, up to PAID_MOST_S.
        max_overhead: the stalls may take this fraction of the time (the spec's target), even if losses want more saves.
        least_s, most_s: bounds; `most_s` is what is used where nothing is ever lost.
    """
    if not 0 < max_overhead < 1 or not 0 < least_s <= most_s:
        raise ValueError(f"max_overhead {max_overhead:g} must be in (0, 1), and 0 < {least_s:g} <= {most_s:g}")
    best_s = daly_interval_s(stall_s + paid_s, mean_time_between_losses_s)
    if paid_s > 0:
        most_s = max(most_s, min(best_s, PAID_MOST_S))
    candidates = [
        Interval(best_s, "price" if paid_s > stall_s else "losses"),
        Interval(stall_s / max_overhead, "overhead"),
        Interval(save_s, "save"),  # a save may not still be under way when the next one begins
        Interval(least_s, "least"),
    ]
    longest = max(candidates, key=lambda interval: interval.seconds)
    # Back-pressure is a fact and no wish: it may exceed even the upper bound.
    return longest if longest.seconds <= max(most_s, save_s) else Interval(max(most_s, save_s), "most")


class IntervalTuner:
    """Follows the measured stall, save and step times and says how many steps to train between saves.

    One rank asks it and tells the others: their measurements differ, and all have to save at the same step.
    """

    def __init__(
        self,
        *,
        mean_time_between_losses_s: float,
        max_overhead: float = 0.01,
        least_s: float = 1.0,
        most_s: float = 1800.0,
    ) -> None:
        self.mean_time_between_losses_s = mean_time_between_losses_s
        self._max_overhead, self._least_s, self._most_s = max_overhead, least_s, most_s
        self._stalls: deque[float] = deque(maxlen=REMEMBERED)
        self._saves: deque[float] = deque(maxlen=REMEMBERED)
        self._paid: deque[float] = deque(maxlen=REMEMBERED)
        self._steps: deque[float] = deque(maxlen=REMEMBERED)

    def observe_step(self, seconds: float) -> None:
        self._steps.append(seconds)

    def observe_save(self, *, stall_s: float, seconds: float, paid_s: float = 0.0) -> None:
        """One committed save: `SaveResult.stall_s` and `.seconds`, and what it is billed (`choose_interval`)."""
        self._paid.append(paid_s)
        self._stalls.append(stall_s)
        self._saves.append(seconds)

    def interval(self) -> Interval | None:
        """None until a step and a save were measured."""
        if not self._stalls or not self._steps:
            return None
        return choose_interval(
            stall_s=statistics.median(self._stalls),
            save_s=statistics.median(self._saves),
            mean_time_between_losses_s=self.mean_time_between_losses_s,
            paid_s=statistics.median(self._paid),
            max_overhead=self._max_overhead,
            least_s=self._least_s,
            most_s=self._most_s,
        )

    def interval_steps(self) -> int:
        """Steps between saves, at least 1."""
        interval = self.interval()
        if interval is None:
            return UNTIL_MEASURED_STEPS
        step_s = statistics.median(self._steps)
        return max(1, math.ceil(interval.seconds / step_s)) if step_s > 0 else UNTIL_MEASURED_STEPS
