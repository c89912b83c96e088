"""A run on machines that may be taken away, as numbers: what it is made of, and what it can be expected to take. Pure.

Times in seconds. cluster/price/simulation.py plays a course with dice, cluster/on_demand.py asks what is left of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

NEVER: Final = 1e-12
"""Losses a second: one in 30,000 years, which exponentials of floats cannot tell from none."""
AWAY_PRIOR_S: Final = 300.0
"""From a loss to the next machine's boot, before anything was measured: noticing it, and capacity. Ours."""
SAVE_INTERVAL_PRIOR_S: Final = 600.0
"""Work between two saves where the job leaves it to `auto`: the longest that it chooses."""


@dataclass(frozen=True)
class Course:
    """What a run on one kind of machine is made of.

    Attributes:
        work_s: work without any disturbance, at the median speed.
        work_spread: standard deviation of ln(work_s): how little is known about the speed.
        start_s: from the first machine's boot to the first step, weights loaded; billed.
        restart_s: the same at every start that goes on from a save, state loaded instead.
        away_s: mean time from a loss to the next machine's boot: noticing, and waiting for capacity; not billed.
        save_interval_s: work between two saves.
        away_interval_s: the same in another region than the store's; None: no other.
        finish_s: from the last step to the end: its save, and the export; billed.
        losses_per_hour: preemptions an hour while any machine is held, for all machines of the job together.
    """

    work_s: float
    work_spread: float
    start_s: float
    restart_s: float
    away_s: float
    save_interval_s: float
    losses_per_hour: float
    finish_s: float = 0.0
    away_interval_s: float | None = None


@dataclass(frozen=True)
class Expected:
    """Means over all plays at the median speed; inf for a run that cannot be expected to finish."""

    wall_s: float
    billed_s: float
    losses: float


def expected(course: Course) -> Expected:
    """Means in closed form, without a single play and without the spread of the speed.

    A piece of L seconds that has to be done in one go, after a start of S, at a hazard of h a second, holds machines
    for (exp(h (S + L)) - 1) / h seconds on average, failed tries included; if a machine is running already, for
    exp(h S) (exp(h L) - 1) / h.
    """
    hazard, every_s = course.losses_per_hour / 3600, course.save_interval_s
    whole = max(math.ceil(course.work_s / every_s) - 1, 0)  # pieces that end in a save with work left after it
    last_s = course.work_s - whole * every_s
    if hazard <= NEVER:
        held_s = course.start_s + course.work_s + course.finish_s
        return Expected(held_s, held_s, 0.0)
    try:
        held_s = math.expm1(hazard * (course.start_s + (every_s if whole else last_s))) / hazard
        later_s = math.expm1(hazard * course.finish_s) / hazard
        if whole:
            later_s += ((whole - 1) * math.expm1(hazard * every_s) + math.expm1(hazard * last_s)) / hazard
        held_s += math.exp(hazard * course.restart_s) * later_s
    except OverflowError:
        return Expected(math.inf, math.inf, math.inf)
    losses = held_s * hazard
    return Expected(held_s + losses * course.away_s, held_s, losses)
