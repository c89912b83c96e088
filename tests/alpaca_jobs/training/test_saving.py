"""When to save, and whether a save fits a notice: arithmetic on measured times."""

from __future__ import annotations

from dataclasses import replace

from alpaca_jobs.training.leaving import save_for_notice
from alpaca_jobs.training.saving import (
    AUTO_LEAST_S,
    AUTO_MOST_S,
    SaveSchedule,
    fits_notice,
    is_due,
)
from checkpoints.interval import UNTIL_MEASURED_STEPS
from checkpoints.torch_bridge import SaveResult


def _measured(
    *, step_s: float, stall_s: float, seconds: float, max_overhead: float = 0.01, losses_per_hour: float = 10.0
) -> int:
    schedule = SaveSchedule("auto", max_overhead=max_overhead, losses_per_hour=losses_per_hour)
    for _ in range(5):
        schedule.observe_step(step_s)
    schedule.observe_save(stall_s=stall_s, seconds=seconds)
    return schedule.interval


def test_a_fixed_interval_stays_and_falls_on_its_multiples() -> None:
    schedule = SaveSchedule(20, max_overhead=0.01)
    schedule.observe_step(1.0)
    schedule.observe_save(stall_s=100.0, seconds=100.0)
    assert schedule.interval == 20
    assert [step for step in range(1, 61) if is_due(step, last_saved=7, interval=20, is_fixed=True)] == [20, 40, 60]


def test_an_automatic_interval_begins_with_an_early_save_that_measures() -> None:
    schedule = SaveSchedule("auto", max_overhead=0.01)
    schedule.observe_step(1.0)
    assert schedule.interval == UNTIL_MEASURED_STEPS
    assert schedule.estimate_s == 0.0
    assert is_due(10, last_saved=0, interval=schedule.interval, is_fixed=False)
    assert not is_due(9, last_saved=0, interval=schedule.interval, is_fixed=False)


def test_an_automatic_interval_keeps_the_stall_within_the_overhead() -> None:
    assert _measured(step_s=2.0, stall_s=3.0, seconds=10.0) == 150  # 3 s / 1 % = 300 s = 150 steps of 2 s
    assert _measured(step_s=2.0, stall_s=3.0, seconds=10.0, max_overhead=0.02) == 75


def test_an_automatic_interval_lets_a_save_finish_and_does_not_flood_the_store() -> None:
    assert _measured(step_s=1.0, stall_s=0.0, seconds=500.0) == 500
    assert _measured(step_s=0.5, stall_s=0.0, seconds=0.1) == 120  # 60 s


def test_an_automatic_interval_follows_the_hazard_between_its_bounds() -> None:
    def seconds(losses_per_hour: float, *, stall_s: float = 2.0) -> int:
        return _measured(
            step_s=1.0, stall_s=stall_s, seconds=10.0, max_overhead=0.5, losses_per_hour=losses_per_hour
        )  # fmt: skip

    assert seconds(0.5) == 169  # Daly: a stall of 2 s and a loss every two hours
    assert seconds(2.0) == 84  # four times as often: half as long, about
    assert seconds(0.0) == AUTO_MOST_S
    assert seconds(0.5, stall_s=0.001) == AUTO_LEAST_S


def test_an_automatic_interval_is_longer_where_each_save_is_billed_and_a_fixed_one_is_not() -> None:
    """A 7B from another region: 81 GB at 0.02 USD, 584 s of machines at 10 USD an hour; a loss every ten hours."""
    paid = {"max_overhead": 0.01, "losses_per_hour": 0.1, "paid_s_per_byte": 0.02e-9 / (10 / 3600)}
    saved = SaveResult(
        position=10, stall_s=0.02, seconds=160.0, bytes=81 * 10**9, stored_bytes=81 * 10**9, committed=True
    )
    told = []
    for stored in (saved, replace(saved, stored_bytes=10**9)):  # adapters, say
        schedule = SaveSchedule("auto", **paid)
        schedule.observe_step(1.0)
        report = schedule.take(stored, step=20)
        told.append((report.interval_steps, report.interval_by))
    # 1 GB is 7.2 s of them: sqrt(2 * 7.22 * 36,000) = 721 s by Young.
    assert told == [(3600, "most"), (717, "price")]
    assert SaveSchedule(7, **paid).take(saved, step=10).interval_steps == 7


def test_what_is_told_of_a_save_names_its_lag_and_what_decides_the_next() -> None:
    schedule = SaveSchedule("auto", max_overhead=0.01, losses_per_hour=0.0)
    assert schedule.interval_by == "first"
    schedule.observe_step(2.0)
    saved = SaveResult(position=10, stall_s=9.0, seconds=12.0, bytes=100, stored_bytes=40, committed=True)
    report = schedule.take(saved, step=16)
    assert (report.position, report.stall_s, report.seconds, report.bytes) == (10, 9.0, 12.0, 100)
    assert (report.lag_steps, report.interval_steps, report.interval_by) == (6, 300, "most")
    skipped = SaveResult(position=20, stall_s=0.0, seconds=0.0, bytes=0, stored_bytes=0, committed=False)
    assert schedule.take(skipped, step=20).interval_steps == 300, "what was skipped has measured nothing"
    assert SaveSchedule(7, max_overhead=0.01).take(saved, step=10).interval_by == "fixed"


def test_a_notice_is_used_if_the_measured_save_fits_with_a_margin() -> None:
    assert fits_notice(30.0, estimate_s=19.0)
    assert not fits_notice(30.0, estimate_s=21.0)
    assert fits_notice(0.5, estimate_s=0.0)


class UnderWay:
    """Saves of which one is under way and takes `takes_s` more seconds of a clock of its own."""

    def __init__(self, takes_s: float) -> None:
        self.schedule = SaveSchedule(3, max_overhead=0.01)
        self.schedule.observe_save(stall_s=0.1, seconds=10.0)
        self.committed, self.now, self._takes_s, self.did = 9, 100.0, takes_s, list[str]()

    def wait(self) -> None:
        self.now += self._takes_s
        self._takes_s, self.committed = 0.0, 12
        self.did.append("waited")

    def save_and_wait(self) -> None:
        self.committed = 13
        self.did.append("saved")

    def leave(self, seconds_left: float, others_left: float = 1000.0) -> str:
        return save_for_notice(
            self,
            step=13,
            seconds_left=seconds_left,
            agree=lambda left, estimate: (min(left, others_left), estimate),
            clock=lambda: self.now,
        )


def test_a_save_under_way_is_waited_for_and_what_is_left_then_decides() -> None:
    saves = UnderWay(takes_s=2.0)
    assert saves.leave(18.0) == "Notice with 18.0 s left (a save takes 10.0 s here): step 13 was saved."
    assert saves.did == ["waited", "saved"]
    saves = UnderWay(takes_s=5.0)
    assert "none was begun: step 12 is the newest committed, 1 steps will be repeated" in saves.leave(18.0)
    assert saves.did == ["waited"]


def test_a_notice_leaves_every_rank_the_time_of_the_one_with_the_least() -> None:
    assert "none was begun" in UnderWay(takes_s=0.0).leave(60.0, others_left=14.0)
