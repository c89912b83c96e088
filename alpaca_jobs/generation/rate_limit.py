"""How fast a teacher may be asked: learned from its headers, adapted to what it refuses, shared by all who ask.

    gate = RateGate()
    await gate.enter()              # before every try: returns when it may be sent
    await gate.tell(RateNews(...))  # after every try: what it told about the limits

One gate per key. Several actors share one through cluster/node/teacher_actor.py; it knows nothing of prompts.

Limits stated in headers are used in full, after refusals a little less for a while; where a server states none, the
rate that it let through before its first refusal is what is tried (additive increase, multiplicative decrease).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

DECREASE = 0.9
"""What is left of the rate after a refusal; at most once a second, since one overshoot is refused many times."""
INCREASE_PER_S = 0.02
"""Share of the full rate that comes back in a second without a refusal."""
SEARCH_PER_S = 0.15
"""The same before the second refusal, where no limit is stated: doubles in five seconds."""
LEAST_SHARE = 0.05
LEAST_RATE = 1 / 60  # requests per second
BURST_S = 1.0
"""How much unused time is made up for at once."""
_MEASURED_S = 10.0
_PATIENCE_S = 0.25  # longest sleep between two looks, since news may shorten a wait


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a server says it allows, per minute; None where it does not say."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class RateNews:
    """What one try told.

    Attributes:
        is_refusal: the server said 429, and did not say that most of its limits is left.
        limits: what its headers state.
        tokens: prompt and completion together, if it was answered and says so.
        retry_after_s: the pause that the server asked for.
        pause_s: nobody is answered now; ask again after so many seconds. Nothing else is learned from it.
    """

    is_refusal: bool
    limits: RateLimits = RateLimits()
    tokens: int | None = None
    retry_after_s: float | None = None
    pause_s: float | None = None


class Pace:
    """The arithmetic of a gate; pure but for its state, with the time as an argument (seconds, any origin)."""

    def __init__(self) -> None:
        self._limits = RateLimits()
        self._share = 1.0
        self._tried: float | None = None  # requests per second, where no limit is stated
        self._step = 0.0  # by which that grows in a second; 0 while its order of magnitude is searched for
        self._mean_tokens: float | None = None
        self._next_request = self._paused_until = self._cut_at = self._grown_at = float("-inf")
        self._began_at = float("inf")
        self._answered: deque[float] = deque()

    @property
    def requests_per_second(self) -> float | None:
        """The rate that is kept now; None while nothing is known and nothing was refused."""
        stated = self._limits
        rates = [self._tried] if self._tried is not None and stated == RateLimits() else []
        if stated.requests_per_minute is not None:
            rates.append(self._share * stated.requests_per_minute / 60)
        if stated.tokens_per_minute is not None and self._mean_tokens:
            rates.append(self._share * stated.tokens_per_minute / 60 / self._mean_tokens)
        return min(rates, default=None)

    def wait_s(self, now: float) -> float:
        """Return the seconds until the next try may be sent; 0 for now."""
        return max(0.0, self._paused_until - now, self._next_request - BURST_S - now)

    def take(self, now: float) -> None:
        """A try is sent."""
        self._began_at = min(self._began_at, now)
        rate = self.requests_per_second
        if rate is not None:
            self._next_request = max(self._next_request, now) + 1 / rate

    def tell(self, now: float, news: RateNews) -> None:
        """Learn from one try."""
        if news.pause_s is not None:
            self._paused_until = max(self._paused_until, now + news.pause_s)
            return
        stated = news.limits
        self._limits = RateLimits(
            stated.requests_per_minute or self._limits.requests_per_minute,
            stated.tokens_per_minute or self._limits.tokens_per_minute,
        )
        if news.is_refusal:
            self._paused_until = max(self._paused_until, now + (news.retry_after_s or 0.0))
            if now - self._cut_at >= 1.0:
                self._cut(now)
            return
        if news.tokens is not None:
            before = self._mean_tokens
            self._mean_tokens = news.tokens if before is None else before + 0.05 * (news.tokens - before)
        self._answered.append(now)
        while self._answered[0] < now - _MEASURED_S:
            self._answered.popleft()
        self._grow(now)

    def _cut(self, now: float) -> None:
        self._cut_at = self._grown_at = now
        self._share = max(LEAST_SHARE, self._share * DECREASE)
        if self._limits == RateLimits():
            if self._tried is None:  # what came back before says little while the first answers are under way
                asked_s = max(1.0, now - self._began_at)
                self._tried = max(1.0, len(self._answered) / min(_MEASURED_S, asked_s))
                return
            self._tried = max(LEAST_RATE, self._tried * DECREASE)
            self._step = INCREASE_PER_S * self._tried

    def _grow(self, now: float) -> None:
        seconds = min(1.0, max(0.0, now - self._grown_at))
        self._grown_at = now
        self._share = min(1.0, self._share + INCREASE_PER_S * seconds)
        if self._tried is not None:
            self._tried += (self._step or SEARCH_PER_S * self._tried) * seconds


class Gate(Protocol):
    """What the completer needs of a gate, wherever it is."""

    async def enter(self) -> None:
        """Wait until the next try may be sent."""

    async def tell(self, news: RateNews) -> None:
        """Pass on what a try told."""


class RateGate:
    """A gate for everybody on one event loop; first come, first served."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Start without knowing any limit; `clock` and `sleep` are for tests."""
        self._clock, self._sleep = clock, sleep
        self._pace = Pace()
        self._turn = asyncio.Lock()

    async def enter(self) -> None:
        """Wait until the next try may be sent."""
        async with self._turn:
            while (wait_s := self._pace.wait_s(self._clock())) > 0:
                await self._sleep(min(wait_s, _PATIENCE_S))
            self._pace.take(self._clock())

    async def tell(self, news: RateNews) -> None:
        """Learn from one try."""
        self._pace.tell(self._clock(), news)

    async def close(self) -> None:
        """Nothing to close; an actor has this."""
