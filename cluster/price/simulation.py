"""A run on machines that may be taken away, played many times with seeded dice. Pure; times in seconds.

|-- start (billed) --|------ work ------x-- away (not billed) --|-- restart --|-- work from the last save ...
                                        preempted: what followed the last save is done again

The last step is saved, too; after it comes the finish (export), which is done again as a whole.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.course import NEVER, Course

_MAX_LOSSES = 1000  # a run that is lost this often is not going to finish


@dataclass(frozen=True)
class Played:
    """One play of a course; `wall_s` and `billed_s` are inf for a run that never finishes.

    Attributes:
        saves_away: in other regions. The region that was just lost comes last, and an hour later in its old place again
            (cluster/placement_order.py): so the machines are in the first region and elsewhere by turns.
    """

    wall_s: float
    billed_s: float
    losses: int
    saves_away: int = 0

    @property
    def losses_away(self) -> int:
        """Losses that took the run out of its first region, where its store is."""
        return (self.losses + 1) // 2


@dataclass(frozen=True)
class Quantiles:
    """What one play in ten, in two, and nine in ten stay under."""

    p10: float
    p50: float
    p90: float


def play(course: Course, *, draws: int, seed: int) -> tuple[Played, ...]:
    """Play a course `draws` times; the same seed plays the same games.

    Every game has dice of its own, so that the n-th games of two courses differ by the courses alone.
    """
    return tuple(_play_once(course, random.Random(f"{seed}/{number}")) for number in range(draws))


def quantiles(values: Sequence[float]) -> Quantiles:
    """10th, 50th and 90th percentile, by nearest rank. Raises ValueError for no values."""
    if not values:
        raise ValueError("quantiles of nothing")
    ordered = sorted(values)
    ranks = (max(math.ceil(share * len(ordered)) - 1, 0) for share in (0.1, 0.5, 0.9))
    return Quantiles(*(ordered[rank] for rank in ranks))


def _play_once(course: Course, rng: random.Random) -> Played:
    left_s = course.work_s * math.exp(rng.gauss(0.0, course.work_spread))
    hazard = course.losses_per_hour / 3600
    wall_s = billed_s = 0.0
    has_saved, saves_away = False, 0
    for losses in range(_MAX_LOSSES):
        life_s = rng.expovariate(hazard) if hazard > NEVER else math.inf
        start_s = course.restart_s if has_saved else course.start_s
        held_s = start_s + left_s + course.finish_s
        worked_s = min(max(life_s - start_s, 0.0), left_s)
        is_away = bool(losses % 2)
        every_s = (course.away_interval_s if is_away else None) or course.save_interval_s
        saves_away += _saves(worked_s, left_s, every_s) if is_away else 0
        if life_s >= held_s:
            return Played(wall_s + held_s, billed_s + held_s, losses, saves_away)
        saved_s = math.floor(worked_s / every_s) * every_s
        has_saved = has_saved or saved_s > 0 or worked_s >= left_s
        left_s = 0.0 if worked_s >= left_s else left_s - saved_s
        billed_s += life_s
        wall_s += life_s + (rng.expovariate(1 / course.away_s) if course.away_s > 0 else 0.0)
    return Played(math.inf, math.inf, _MAX_LOSSES)


def _saves(worked_s: float, left_s: float, every_s: float) -> int:
    """Saves of so much work, of which so much was left; the last step is saved as well."""
    return math.ceil(left_s / every_s) if worked_s >= left_s else math.floor(worked_s / every_s)
