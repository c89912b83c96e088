"""`concurrency: auto`: as many requests under way as bring more answers, whoever's limit that is."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.node.in_flight import FIRST_PER_ACTOR, MOST_PER_ACTOR, Fixed, InFlight, in_flight_of


class Server:
    """Answers so many at once, and so many a second at most, each after a latency; simulated, in no time."""

    def __init__(self, latency_s: Callable[[], float], *, at_once: float = 1e9, per_s: float = 1e9) -> None:
        self._latency_s, self._at_once, self._gap_s = latency_s, at_once, 1 / per_s
        self._free_at: list[float] = []
        self._next_s = 0.0

    def answered_at(self, now: float) -> float:
        """When a request that is sent now is answered."""
        begin = max(now, self._next_s)
        self._next_s = begin + self._gap_s
        if len(self._free_at) >= self._at_once:
            begin = max(begin, heapq.heappop(self._free_at))
        end = begin + self._latency_s()
        heapq.heappush(self._free_at, end)
        return end


def run(found: InFlight | Fixed, server: Server, *, seconds: float, wanted: int = 10**9) -> list[tuple[float, int]]:
    """Keep as many under way as there are places, at most `wanted`; returns when the number changed, and to what."""
    now, flying = 0.0, [(server.answered_at(0.0), 0.0) for _ in range(min(found.capacity, wanted))]
    heapq.heapify(flying)
    course = [(0.0, found.capacity)]
    while now < seconds:
        now, sent_at = heapq.heappop(flying)
        found.tell(now, [sent_at], under_way=len(flying) + 1)
        while len(flying) < min(found.capacity, wanted):
            heapq.heappush(flying, (server.answered_at(now), now))
        if found.capacity != course[-1][1]:
            course.append((now, found.capacity))
    return course


def steady(latency_s: float) -> Callable[[], float]:
    return lambda: latency_s


def uneven(mean_s: float) -> Callable[[], float]:
    """Log-normal, as the lengths of answers are."""
    dice = random.Random(1)
    return lambda: mean_s * dice.lognormvariate(-0.125, 0.5)


@pytest.mark.parametrize("latency_s", [steady(2.0), uneven(2.0)])
def test_a_fast_teacher_is_asked_as_often_as_two_processes_can(latency_s: Callable[[], float]) -> None:
    found = in_flight_of(2, "auto")
    course = run(found, Server(latency_s), seconds=60)
    assert course[0][1] == 2 * FIRST_PER_ACTOR
    assert max(capacity for _, capacity in course) == 2 * MOST_PER_ACTOR == found.most
    assert next(at_s for at_s, capacity in course if capacity == found.most) < 30


@pytest.mark.parametrize("latency_s", [steady(1.5), uneven(1.5)])
def test_a_limit_is_used_and_not_run_into(latency_s: Callable[[], float]) -> None:
    """20 a second with 1.5 s each are 30 under way."""
    found = in_flight_of(2, "auto")
    course = run(found, Server(latency_s, per_s=20), seconds=120)
    late = [capacity for at_s, capacity in course if at_s > 20] or [course[-1][1]]
    assert 30 <= min(late) <= max(late) <= 128


def test_a_server_that_answers_so_many_at_once_gets_hardly_more() -> None:
    found = in_flight_of(2, "auto")
    late = [capacity for _, capacity in run(found, Server(uneven(4.0), at_once=100), seconds=400)]
    assert 95 <= late[-1] <= max(late) <= 300


def test_where_fewer_are_wanted_nothing_is_learned() -> None:
    found = in_flight_of(2, "auto")
    assert run(found, Server(steady(0.5)), seconds=30, wanted=8) == [(0.0, 16)]


def test_a_teacher_that_becomes_faster_is_found_out() -> None:
    found = in_flight_of(1, "auto")
    slow = Server(steady(1.0), per_s=10)
    assert isinstance(found, InFlight)
    run(found, slow, seconds=60)
    before = found.capacity
    run(found, Server(steady(1.0), per_s=100), seconds=200)
    assert found.capacity > 2 * before


@given(
    st.integers(1, 8), st.floats(0.01, 20), st.floats(0.5, 500), st.integers(1, 600), st.integers(0, 10**6)
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_it_stays_between_its_first_and_its_most(
    num_actors: int, latency_s: float, per_s: float, at_once: int, seed: int
) -> None:
    found, dice = in_flight_of(num_actors, "auto"), random.Random(seed)
    server = Server(lambda: latency_s * dice.lognormvariate(0, 0.7), at_once=at_once, per_s=per_s)
    capacities = [capacity for _, capacity in run(found, server, seconds=min(60.0, 500 / per_s))]
    assert num_actors * FIRST_PER_ACTOR <= min(capacities) <= max(capacities) <= num_actors * MOST_PER_ACTOR


def test_a_number_in_the_job_is_kept() -> None:
    found = in_flight_of(3, 5)
    assert run(found, Server(steady(0.1)), seconds=20) == [(0.0, 15)]
    assert (found.capacity, found.most) == (15, 15)
