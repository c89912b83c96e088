"""How many requests to keep under way where the job leaves it to `auto`. Pure but for its state; time is an argument.

Little's law: requests in flight = answers a second x seconds that an answer takes. The seconds are measured, so the
answers a second are known at any number in flight. More are tried, and kept for as long as more answers come of it:

    16 -> 32 -> 64 -> 64 gave no more than 32: back to what was of use, and a look a little higher now and then

What answers no faster is at its limit, whichever that is: the rate that it allows (rate_limit.py keeps it), its own
speed, or ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_PER_ACTOR = 8
MOST_PER_ACTOR = 256
"""Requests in flight in one process at most; one that keeps so many is busy with little else."""
_FIRST_GROWTH, _LATER_GROWTH = 2.0, 1.5
_OF_USE = 0.3
"""Share of a growth by which answers have to come faster for it to be kept."""
_SPARE = 1.25
"""Above what was of use, since answers do not come evenly."""
_FULL = 0.7
"""Share of the places that has to be taken; places are filled up by the quarter."""
_FEWEST_ANSWERS = 32
_WINDOWS_BETWEEN_LOOKS = 8


@dataclass
class InFlight:
    """The number for one stage; `tell` it what comes back.

    Attributes:
        capacity: requests to keep under way now.
        most: what that may grow to.
    """

    capacity: int
    most: int
    _growth: float = _FIRST_GROWTH
    _before: tuple[int, float] | None = None  # the capacity before the newest growth, and its answers a second
    _rests: int = 0  # windows until the next growth
    _since: float = float("-inf")  # what was sent earlier is not counted
    _answers: int = 0
    _seconds: float = 0.0  # that those answers took together, waiting for their turn included

    def tell(self, now: float, sent_at: Sequence[float], *, under_way: int) -> None:
        """Learn from a look at what came back.

        Args:
            now: seconds, any origin.
            sent_at: when each request was sent whose answer came since the last call.
            under_way: requests before they came; fewer than there are places for means that nothing is learned.
        """
        if under_way < _FULL * self.capacity:
            self._begin(now)
            return
        counted = [now - sent for sent in sent_at if sent >= self._since]
        self._answers, self._seconds = self._answers + len(counted), self._seconds + sum(counted)
        if self._answers >= max(self.capacity, _FEWEST_ANSWERS):
            self._decide(self.capacity * self._answers / max(self._seconds, 1e-9))
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._since, self._answers, self._seconds = now, 0, 0.0

    def _decide(self, rate: float) -> None:
        """A whole window was measured: so many answers a second come, by Little's law."""
        if self._before is not None:
            capacity, before = self._before
            growth = self.capacity / capacity
            if rate < before * (1 + _OF_USE * (growth - 1)):
                spare = _SPARE if self._growth == _FIRST_GROWTH else 1.0  # once, or every look would add to it
                useful = math.ceil(capacity * max(rate / before, 1.0) * spare)
                self._growth, self._rests, self._before = _LATER_GROWTH, _WINDOWS_BETWEEN_LOOKS, None
                self.capacity = min(useful, self.capacity)
                return
        if self._rests > 0:
            self._rests -= 1
            return
        larger = min(math.ceil(self.capacity * self._growth), self.most)
        self._before = (self.capacity, rate) if larger > self.capacity else None
        self.capacity = larger


@dataclass
class Fixed:
    """The number that the job names."""

    capacity: int

    @property
    def most(self) -> int:
        """The same."""
        return self.capacity

    def tell(self, now: float, sent_at: Sequence[float], *, under_way: int) -> None:
        """Nothing is learned."""


def in_flight_of(num_actors: int, concurrency: int | str) -> InFlight | Fixed:
    """The number for `data.num_actors` actors and a `data.concurrency`."""
    if isinstance(concurrency, int):
        return Fixed(num_actors * concurrency)
    return InFlight(num_actors * FIRST_PER_ACTOR, num_actors * MOST_PER_ACTOR)
