"""The limits of a run as its machine on a cloud keeps them: it leaves before a line is crossed."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from alpaca_jobs.spec import JobSpec
from checkpoints.errors import StoreUnreachable
from cluster.cloud.limit_watch import AFTER_S, MARGIN_S, WINDOW_S, LimitWatch, leaving_s
from cluster.exits import Notice
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.recovery import StopReason

PLACE = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.36, 2)  # 0.0002 USD a second, both machines
BOOT = 1_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def watch(clock: Clock, **given: Any) -> LimitWatch:
    values: dict[str, Any] = {
        "deadline_at_s": None, "max_usd": None, "before_usd": 0.0, "place": PLACE, "started_at_s": BOOT,
        "teacher_usd": lambda: None, "give_notice": lambda _: None,
    }  # fmt: skip
    return LimitWatch(**values | given, clock=clock)


def test_the_notice_of_a_deadline_comes_a_window_before_it() -> None:
    clock = Clock(5_000 - WINDOW_S - MARGIN_S - 1)
    given = watch(clock, deadline_at_s=5_000)
    assert given.look() is None
    clock.now += 1
    assert given.look() == Notice(StopReason.DEADLINE, WINDOW_S)


def test_the_bill_that_leaving_will_have_come_to_stays_below_the_budget() -> None:
    clock = Clock(BOOT)
    given = watch(clock, max_usd=1.0, before_usd=0.5, teacher_usd=lambda: 0.1)
    # What is left, 0.40 USD, pays 2,000 s of both machines, of which the last are for leaving and for their end.
    clock.now = BOOT + 2_000 - WINDOW_S - MARGIN_S - AFTER_S - 1
    assert given.look() is None
    clock.now += 1.001
    assert given.look() == Notice(StopReason.BUDGET, WINDOW_S)


def test_a_long_save_moves_the_notice_forward_so_that_it_and_the_hard_end_fit_before_the_line() -> None:
    clock, needed = Clock(BOOT), [0.0]
    by_time = watch(clock, deadline_at_s=BOOT + 1_000, leave_s=lambda: needed[0])
    by_money = watch(clock, max_usd=0.2, leave_s=lambda: needed[0])  # 1,000 s of both machines
    clock.now = BOOT + 1_000 - 400 - MARGIN_S - AFTER_S
    assert by_time.look() is by_money.look() is None
    needed[0] = 400.001  # the first save was measured
    assert by_money.look() == Notice(StopReason.BUDGET, 400.001)
    clock.now += AFTER_S
    assert by_time.look() == Notice(StopReason.DEADLINE, 400.001)
    assert by_time.look().window_s + MARGIN_S <= BOOT + 1_000 - clock.now + 0.01  # type: ignore[union-attr]


def test_a_machine_is_bought_only_if_it_need_not_leave_as_it_comes() -> None:
    body = {"name": "demo", "data": {"num_rows": 8, "teacher": "offline"}, "store": "s3://b/r"}
    jobs = (
        JobSpec.model_validate({**body, "train": {"model": model}, "compute": {"infra": "aws", **compute}})
        for model, compute in (("tiny-llama", {"workers": 1}), ("huggyllama/llama-7b", {"gpus": "A100-80GB:8"}))
    )
    small, large = (LaunchPlan("demo-x3fkd", job, "s3://b/r", (PLACE,), 1, "0+test") for job in jobs)
    assert leaving_s(small) == WINDOW_S + MARGIN_S + AFTER_S
    assert leaving_s(large) > 200 + MARGIN_S + AFTER_S
    told = replace(small, num_parameters=13_000_000_000)  # by its files, whatever it is called
    assert leaving_s(told) > 400 + MARGIN_S + AFTER_S


def test_the_teachers_newest_total_counts_even_while_the_store_does_not_answer() -> None:
    told: list[float | None] = [0.9, None]

    def read() -> float | None:
        if not told:
            raise StoreUnreachable("s3://b does not answer")
        return told.pop(0)

    clock = Clock(BOOT)
    given = watch(clock, max_usd=1.0, teacher_usd=read)
    assert [given.look() for _ in range(3)] == [None, None, None]
    clock.now = BOOT + 500 - WINDOW_S - MARGIN_S - AFTER_S + 0.001
    assert given.look() == Notice(StopReason.BUDGET, WINDOW_S)


def test_it_gives_notice_once_and_from_a_thread_of_its_own() -> None:
    given: list[tuple[Notice, str]] = []
    done = threading.Event()

    def take(notice: Notice) -> None:
        given.append((notice, threading.current_thread().name))
        done.set()

    watch(Clock(BOOT), deadline_at_s=BOOT, give_notice=take).start()
    assert done.wait(5)
    assert given == [(Notice(StopReason.DEADLINE, WINDOW_S), "limit-watch")]


def test_without_a_limit_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    watch(Clock(BOOT)).start()
    assert threading.active_count() == before
