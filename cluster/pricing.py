"""Money and time arithmetic, pure: what was spent, what is left, how long the rest lasts.

A missing price is None and makes a sum None: an unknown price must not look like a free one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from alpaca_jobs.spec import LimitsSpec

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Usage:
    """Machines that were held for a time.

    Attributes:
        seconds: from the machine's boot to its end, also while it did nothing useful: that is what is billed.
        num_nodes: machines held together.
        price_per_hour_usd: of one of them; None when unknown.
    """

    seconds: float
    num_nodes: int
    price_per_hour_usd: float | None

    @property
    def cost_usd(self) -> float | None:
        """`seconds / 3600 * price_per_hour_usd * num_nodes`, or None without a price."""
        if self.price_per_hour_usd is None:
            return None
        return self.seconds / SECONDS_PER_HOUR * self.price_per_hour_usd * self.num_nodes


def machines_cost_usd(usages: Iterable[Usage]) -> float | None:
    """What all usages cost together; None as soon as one price is unknown, 0.0 for none."""
    total = 0.0
    for usage in usages:
        cost_usd = usage.cost_usd
        if cost_usd is None:
            return None
        total += cost_usd
    return total


def budget_left_usd(limits: LimitsSpec, *, machines_usd: float, teacher_usd: float) -> float:
    """Dollars left of `limits.max_usd`, at least 0; math.inf without that limit."""
    return math.inf if limits.max_usd is None else max(limits.max_usd - machines_usd - teacher_usd, 0.0)


def teacher_left_usd(limits: LimitsSpec, *, machines_usd: float, teacher_usd: float) -> float:
    """Dollars the teacher may still cost: the smaller rest of `teacher_max_usd` and of the whole budget."""
    own = math.inf if limits.teacher_max_usd is None else max(limits.teacher_max_usd - teacher_usd, 0.0)
    return min(own, budget_left_usd(limits, machines_usd=machines_usd, teacher_usd=teacher_usd))


def deadline_left_s(limits: LimitsSpec, *, elapsed_s: float) -> float:
    """Seconds until the deadline, at least 0; math.inf without one. `elapsed_s` counts from the launch."""
    return math.inf if limits.deadline_h is None else max(limits.deadline_h * SECONDS_PER_HOUR - elapsed_s, 0.0)


def lasts_s(left_usd: float, *, job_price_per_hour_usd: float) -> float:
    """Seconds that `left_usd` pays for machines at this price for all of them together; math.inf when free."""
    return math.inf if job_price_per_hour_usd == 0 else left_usd / job_price_per_hour_usd * SECONDS_PER_HOUR
