"""When the next machine should be one that nobody takes away: spot may come too late, or is no cheaper. Pure.

    time left <  a machine found + start + work left + finish  +  one more loss       -> on demand (deadline)
    cost left on spot, its remaining losses included  >  cost left on demand          -> on demand (cost)

One more loss is counted at its worst: just before a save, or at the very end. So a run that goes on with spot can be
lost once more, at any moment, and still be finished on demand in time. Neither holds where the rest on demand would
cross the budget, and the first one does not where on demand would be too late as well. cluster/recovery.py asks this
before every launch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.course import Course, expected
from cluster.duration import duration_words
from cluster.plan import Placement


@dataclass(frozen=True)
class Outlook:
    """What is left of a run, as far as that is known.

    Attributes:
        course: what is left on machines of the candidates' kind, as if it began now; its losses are those of spot
            machines, all of the job together.
        then_s: what follows on other machines (training, where these write the rows), undisturbed; 0 for nothing.
        other_usd: what is left to pay for beside machines: the teacher.
        source: where the speed comes from, in words.
    """

    course: Course
    then_s: float = 0.0
    other_usd: float = 0.0
    source: str = ""

    @property
    def undisturbed_s(self) -> float:
        """From now to the end of this course, without a loss: a machine is found, boots, works and finishes."""
        return self.course.away_s + self.held_s

    @property
    def held_s(self) -> float:
        """Of that, how long machines are held, and paid for."""
        return self.course.start_s + self.course.work_s + self.course.finish_s

    @property
    def with_a_loss_s(self) -> float:
        """The same with one more loss at its worst: just before a save, or when all but the last of it is done."""
        again_s = max(min(self.course.save_interval_s, self.course.work_s), self.course.finish_s)
        return self.undisturbed_s + self.course.away_s + self.course.restart_s + again_s


@dataclass(frozen=True)
class Need:
    """Whether the next machine should be on demand, and why (not), in words; empty where there is nothing to say."""

    is_needed: bool
    words: str = ""


def on_demand_need(
    outlook: Outlook, spot: Placement, on_demand: Placement, *, left_s: float | None, left_usd: float | None
) -> Need:
    """Decide between the best place of each kind.

    Args:
        left_s: seconds until the deadline; None without one.
        left_usd: dollars left of the budget; None without one.
    """
    cost_usd = on_demand.usd_for(outlook.held_s)
    needed_s = outlook.undisturbed_s + outlook.then_s
    late, dear = _late(outlook, left_s), _dear(outlook, spot, cost_usd)
    if not late and not dear:
        return Need(False)
    if not _is_paid(cost_usd, outlook, left_usd):
        return Need(False, f"{late or dear}, but on demand{_usd(cost_usd)} the budget would not last to the end")
    if late and left_s is not None and needed_s <= left_s:
        return Need(True, late)
    if dear:
        return Need(True, dear)
    return Need(False, f"{late}, but on demand it would need {duration_words(needed_s)} and be late as well")


def _late(outlook: Outlook, left_s: float | None) -> str:
    needed_s = outlook.with_a_loss_s + outlook.then_s
    if left_s is None or needed_s <= left_s:
        return ""
    return (
        f"{duration_words(max(left_s, 0.0))} are left until the deadline, and on spot the rest could take "
        f"{duration_words(needed_s)} with one more loss ({outlook.source})"
    )


def _dear(outlook: Outlook, spot: Placement, cost_usd: float | None) -> str:
    means = expected(outlook.course)
    spot_usd = spot.usd_for(means.billed_s)
    if spot_usd is None or cost_usd is None or spot_usd <= cost_usd:
        return ""
    if math.isinf(spot_usd):
        return f"on spot the rest cannot be expected to finish ({outlook.source})"
    return (
        f"the rest is expected to cost {spot_usd:.2f} USD on spot, with {means.losses:.1f} more losses, and "
        f"{cost_usd:.2f} USD on demand ({outlook.source})"
    )


def _is_paid(cost_usd: float | None, outlook: Outlook, left_usd: float | None) -> bool:
    if left_usd is None:
        return True
    return cost_usd is not None and cost_usd + outlook.other_usd <= left_usd


def _usd(cost_usd: float | None) -> str:
    return "" if cost_usd is None else f" ({cost_usd:.2f} USD)"
