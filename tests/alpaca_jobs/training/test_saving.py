"""When to save, and whether a save fits a notice: arithmetic on measured times."""

from __future__ import annotations

from alpaca_jobs.training.saving import FIRST_AUTO_INTERVAL, SaveSchedule, fits_notice, is_due


def _measured(*, step_s: float, stall_s: float, seconds: float, max_overhead: float = 0.01) -> int:
    schedule = SaveSchedule("auto", max_overhead=max_overhead)
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
    assert schedule.interval == FIRST_AUTO_INTERVAL
    assert schedule.estimate_s == 0.0
    assert is_due(10, last_saved=0, interval=schedule.interval, is_fixed=False)
    assert not is_due(9, last_saved=0, interval=schedule.interval, is_fixed=False)


def test_an_automatic_interval_keeps_the_stall_within_the_overhead() -> None:
    assert _measured(step_s=2.0, stall_s=3.0, seconds=10.0) == 150  # 3 s / 1 % = 300 s = 150 steps of 2 s
    assert _measured(step_s=2.0, stall_s=3.0, seconds=10.0, max_overhead=0.02) == 75


def test_an_automatic_interval_lets_a_save_finish_and_does_not_flood_the_store() -> None:
    assert _measured(step_s=1.0, stall_s=0.0, seconds=500.0) == 500
    assert _measured(step_s=0.5, stall_s=0.0, seconds=0.1) == 120  # 60 s


def test_a_notice_is_used_if_the_measured_save_fits_with_a_margin() -> None:
    assert fits_notice(30.0, estimate_s=19.0, in_flight=False)
    assert not fits_notice(30.0, estimate_s=21.0, in_flight=False)
    assert not fits_notice(30.0, estimate_s=11.0, in_flight=True)
    assert fits_notice(0.5, estimate_s=0.0, in_flight=False)
