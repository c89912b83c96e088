"""When a lease counts as standing still, and how long a store is tried."""

from __future__ import annotations

import pytest

from checkpoints.errors import StorePermission, StoreUnreachable
from cluster.runs.attempt_watch import LeaseWatch, patiently
from cluster.runs.session import Timing

TIMING = Timing(store_poll_s=1.0, lease_s=20.0, claim_s=60.0)


def looks(watch: LeaseWatch, *, counter: int | None, since: float, until: float) -> list[float]:
    """Look once a second; the times at which it stood still for too long."""
    return [now for now in range(int(since), int(until) + 1) if watch.is_stalled(counter, now)]


def test_a_lease_that_stands_still_for_the_lease_time_is_stalled() -> None:
    watch = LeaseWatch(TIMING, 0.0)
    assert not watch.is_stalled(1, 1.0)
    assert looks(watch, counter=1, since=2, until=25)[0] == 21


def test_every_change_starts_the_time_again_even_to_a_lower_number() -> None:
    watch = LeaseWatch(TIMING, 0.0)
    watch.is_stalled(7, 1.0)
    assert looks(watch, counter=7, since=2, until=19) == []
    assert not watch.is_stalled(3, 20.0)
    assert looks(watch, counter=3, since=21, until=45)[0] == 40


def test_a_node_has_longer_until_its_first_lease() -> None:
    watch = LeaseWatch(TIMING, 0.0)
    assert looks(watch, counter=None, since=1, until=70)[0] == 60


def test_a_supervisor_that_slept_has_not_seen_the_lease_stand_still() -> None:
    watch = LeaseWatch(TIMING, 0.0)
    watch.is_stalled(1, 1.0)
    assert not watch.is_stalled(1, 10_000.0)  # the laptop's lid was closed, and the node slept as well
    assert not watch.is_stalled(2, 10_001.0)


class TestPatience:
    def test_a_store_that_comes_back_is_waited_for(self) -> None:
        answers = iter([StoreUnreachable("away"), StoreUnreachable("away"), 7])
        slept: list[float] = []

        def ask() -> int:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert patiently(ask, 60.0, sleep=slept.append) == 7
        assert len(slept) == 2

    def test_one_that_does_not_is_given_up_and_a_refusal_at_once(self) -> None:
        def away() -> int:
            raise StoreUnreachable("away")

        def refused() -> int:
            raise StorePermission("no")

        with pytest.raises(StoreUnreachable):
            patiently(away, 0.0)
        with pytest.raises(StorePermission):
            patiently(refused, 60.0, sleep=lambda _: pytest.fail("waited for a refusal"))
