"""The gate against servers with limits, played on a clock that is turned, not waited for."""

from __future__ import annotations

import asyncio
import heapq
import random
from dataclasses import dataclass

import pytest

from alpaca_jobs.generation.rate_limit import Pace, RateGate, RateLimits, RateNews
from alpaca_jobs.generation.teacher_reply import read_has_room, read_rate_limits


@dataclass
class LimitedServer:
    """A token bucket for requests and one for tokens, as OpenAI's are: `burst_s` of the rate may come at once."""

    requests_per_minute: float
    tokens_per_minute: float = float("inf")
    burst_s: float = 2.0
    states_limits: bool = True
    _requests: float = 0.0
    _tokens: float = 0.0
    _seen_at: float = 0.0
    answered: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self._requests = self.requests_per_minute / 60 * self.burst_s
        self._tokens = self.tokens_per_minute / 60 * self.burst_s

    def ask(self, now: float, tokens: int) -> RateNews:
        rate, token_rate = self.requests_per_minute / 60, self.tokens_per_minute / 60
        self._requests = min(rate * self.burst_s, self._requests + rate * (now - self._seen_at))
        self._tokens = min(token_rate * self.burst_s, self._tokens + token_rate * (now - self._seen_at))
        self._seen_at = now
        stated = RateLimits(
            self.requests_per_minute, None if self.tokens_per_minute == float("inf") else self.tokens_per_minute
        )
        limits = stated if self.states_limits else RateLimits()
        if self._requests < 1 or self._tokens < tokens:
            self.refused += 1
            return RateNews(True, limits, retry_after_s=0.5)
        self._requests, self._tokens = self._requests - 1, self._tokens - tokens
        self.answered += 1
        return RateNews(False, limits, tokens)


def play(server: LimitedServer, *, seconds: float, in_flight: int = 200, latency_s: float = 1.5) -> None:
    """Ask as fast as the pace allows, with so many requests in flight."""
    pace, dice, now = Pace(), random.Random(1), 0.0
    arriving: list[tuple[float, int, RateNews]] = []
    number = 0
    while now < seconds:
        while arriving and arriving[0][0] <= now:
            pace.tell(now, heapq.heappop(arriving)[2])
        wait_s = pace.wait_s(now)
        if wait_s == 0 and len(arriving) < in_flight:
            pace.take(now)
            number += 1
            news = server.ask(now, dice.randint(800, 1600))
            delay_s = 0.05 if news.is_refusal else latency_s * dice.uniform(0.5, 1.5)
            heapq.heappush(arriving, (now + delay_s, number, news))
            continue
        steps = [now + wait_s] if wait_s else []
        steps += [arriving[0][0]] if arriving else []
        now = max(min(steps), now + 1e-6)


@pytest.mark.parametrize(
    ("requests_per_minute", "tokens_per_minute"), [(60, float("inf")), (600, float("inf")), (6000, 600_000)]
)
def test_stated_limits_are_used_to_95_percent_with_few_refusals(
    requests_per_minute: float, tokens_per_minute: float
) -> None:
    server = LimitedServer(requests_per_minute, tokens_per_minute)
    play(server, seconds=600)
    allowed = 600 / 60 * min(requests_per_minute, tokens_per_minute / 1200)
    assert server.answered >= 0.95 * allowed
    assert server.refused <= 200 + 0.02 * server.answered, "200 were sent before anything was known"


def test_a_limit_that_is_not_stated_is_found_and_kept() -> None:
    server = LimitedServer(600, states_limits=False)
    play(server, seconds=600)
    assert server.answered >= 0.85 * 6000
    assert server.refused <= 0.1 * server.answered + 200


def test_a_key_that_others_use_too_is_shared_and_not_hammered() -> None:
    """Half of what the headers promise is there; the rate falls to about that, and refusals stay few."""
    server = LimitedServer(300)
    half = LimitedServer(600, states_limits=False)
    pace, now, sent = Pace(), 0.0, 0
    while now < 300:
        if pace.wait_s(now) == 0:
            pace.take(now)
            sent += 1
            news = server.ask(now, 1)
            pace.tell(now, RateNews(news.is_refusal, RateLimits(half.requests_per_minute), 1, news.retry_after_s))
        now += 0.02
    assert server.answered >= 0.8 * 1500
    assert server.refused <= 0.2 * sent


def test_a_pause_that_the_server_asks_for_holds_everybody_back() -> None:
    pace = Pace()
    pace.tell(10.0, RateNews(True, retry_after_s=7.0))
    assert pace.wait_s(10.0) == pytest.approx(7.0)
    pace.tell(11.0, RateNews(True, retry_after_s=1.0))
    assert pace.wait_s(11.0) == pytest.approx(6.0)


def test_one_gate_lets_everybody_through_at_the_rate_of_one_key() -> None:
    clock = [0.0]

    async def sleep(seconds: float) -> None:
        clock[0] += seconds
        await asyncio.sleep(0)

    async def run() -> list[float]:
        gate = RateGate(clock=lambda: clock[0], sleep=sleep)
        await gate.tell(RateNews(False, RateLimits(60.0)))
        sent: list[float] = []

        async def asker() -> None:
            for _ in range(10):
                await gate.enter()
                sent.append(clock[0])

        await asyncio.gather(*(asker() for _ in range(3)))
        await gate.close()
        return sent

    sent = asyncio.run(run())
    assert len(sent) == 30
    assert sent[-1] == pytest.approx(28.0, abs=0.3), "one a second for all three together, one second's worth at once"


def stated(limit: str, remaining: str, reset: str) -> dict[str, str]:
    return {f"x-ratelimit-{kind}-requests": said for kind, said in zip(NAMES, (limit, remaining, reset), strict=True)}


NAMES = ("limit", "remaining", "reset")


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, RateLimits()),
        ({"x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "200000"}, RateLimits(500, 200_000)),
        (
            stated("500", "499", "120ms"),
            RateLimits(500),
        ),
        (
            stated("10000", "9999", "8.64s"),
            RateLimits(10_000 / 1440),
        ),
        (
            stated("200", "190", "1h12m0s"),
            RateLimits(200 / 1440),
        ),
        ({"x-ratelimit-limit-requests": "many", "x-ratelimit-limit-tokens": "-1"}, RateLimits()),
        ({"x-ratelimit-limit-requests": "0"}, RateLimits()),
    ],
)  # fmt: skip
def test_limits_are_read_as_openai_states_them_daily_ones_too(headers: dict[str, str], limits: RateLimits) -> None:
    assert read_rate_limits(headers) == limits


@pytest.mark.parametrize(
    ("headers", "has_room"),
    [
        ({}, False),
        ({"x-ratelimit-limit-requests": "500"}, False),
        (stated("500", "0", "120ms"), False),
        (stated("500", "249", "30s"), False),
        (stated("500", "499", "120ms"), True),
        (
            {**stated("500", "499", "120ms"), "x-ratelimit-limit-tokens": "9", "x-ratelimit-remaining-tokens": "1"},
            False,
        ),
    ],
)
def test_a_refusal_with_most_of_the_limits_left_is_not_a_refusal_for_them(
    headers: dict[str, str], has_room: bool
) -> None:
    assert read_has_room(headers) is has_room
