"""The interval between saves, against a brute-force search of the model it comes from."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.interval import (
    PAID_MOST_S,
    UNTIL_MEASURED_STEPS,
    IntervalTuner,
    choose_interval,
    daly_interval_s,
)


def _total_time(interval_s: float, cost_s: float, mean_s: float) -> float:
    """Expected time per second of work with exponentially distributed losses (Daly 2006, eq. 20, restart time 0)."""
    return mean_s * math.expm1((interval_s + cost_s) / mean_s) / interval_s


@given(st.floats(0.01, 600), st.floats(60, 1e6))
def test_no_interval_beats_dalys_by_more_than_one_percent(cost_s: float, mean_s: float) -> None:
    if cost_s > mean_s / 2:
        return  # hardly any work gets done there, whatever the interval
    chosen = _total_time(daly_interval_s(cost_s, mean_s), cost_s, mean_s)
    best = min(_total_time(mean_s * 1.01**power, cost_s, mean_s) for power in range(-1200, 300))
    assert chosen <= best * 1.01


def test_a_known_case() -> None:
    # A stall of 2 s and a loss every 2 h: sqrt(2 * 2 * 7200) = 169.7 s by Young, a second less by Daly.
    assert daly_interval_s(2, 7200) == pytest.approx(168.4, abs=0.1)
    assert daly_interval_s(1, math.inf) == math.inf
    assert daly_interval_s(100, 10) == 10
    with pytest.raises(ValueError, match="no such cost or time"):
        daly_interval_s(1, 0)


@pytest.mark.parametrize(
    ("stall_s", "save_s", "mean_s", "seconds", "decided_by"),
    [
        (2, 10, 7200, 200, "overhead"),  # losses want 168 s, one percent of overhead allows 200
        (0.1, 10, 7200, 37.8, "losses"),
        (0.1, 60, 7200, 60, "save"),
        (0.0, 0, 7200, 1, "least"),
        (0.1, 10, math.inf, 1800, "most"),
        (0.1, 4000, math.inf, 4000, "most"),  # no bound makes an upload faster
    ],
)
def test_what_decides_is_said(stall_s: float, save_s: float, mean_s: float, seconds: float, decided_by: str) -> None:
    chosen = choose_interval(stall_s=stall_s, save_s=save_s, mean_time_between_losses_s=mean_s)
    assert chosen.seconds == pytest.approx(seconds, rel=0.01)
    assert chosen.decided_by == decided_by


@pytest.mark.parametrize(
    ("paid_s", "mean_s", "seconds", "decided_by"),
    [
        (0.0, 36_000, 267, "losses"),
        # 60 s of the machines, a loss in ten hours: sqrt(2 * 61 * 36,000) = 2,096 s by Young; Daly takes a little off.
        (60.0, 36_000, 2055, "price"),
        (600.0, 36_000, PAID_MOST_S, "most"),
        (60.0, math.inf, PAID_MOST_S, "most"),
        (1e-6, 36_000, 267, "losses"),  # next to nothing changes next to nothing
    ],
)
def test_saves_that_are_billed_are_as_rare_as_bill_and_lost_work_make_best(
    paid_s: float, mean_s: float, seconds: float, decided_by: str
) -> None:
    chosen = choose_interval(stall_s=1, save_s=60, mean_time_between_losses_s=mean_s, paid_s=paid_s, most_s=600)
    assert chosen.seconds == pytest.approx(seconds, rel=0.01)
    assert chosen.decided_by == decided_by


@given(st.floats(0, 100), st.floats(0, 5000), st.floats(1, 1e9), st.floats(0.001, 0.5))
def test_the_overhead_target_and_back_pressure_always_hold(
    stall_s: float, save_s: float, mean_s: float, target: float
) -> None:
    chosen = choose_interval(
        stall_s=stall_s, save_s=save_s, mean_time_between_losses_s=mean_s, max_overhead=target, most_s=1e9
    )
    assert stall_s / chosen.seconds <= target * 1.000001
    assert chosen.seconds >= save_s


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_overhead 1\.5"):
        choose_interval(stall_s=1, save_s=1, mean_time_between_losses_s=1, max_overhead=1.5)


def test_the_tuner_follows_the_median_of_what_it_measured() -> None:
    tuner = IntervalTuner(mean_time_between_losses_s=7200)
    assert tuner.interval() is None
    assert tuner.interval_steps() == UNTIL_MEASURED_STEPS
    for step_s in (2.0, 2.0, 50.0):  # one slow step changes nothing
        tuner.observe_step(step_s)
    for _ in range(3):
        tuner.observe_save(stall_s=2.0, seconds=10)
    assert tuner.interval_steps() == 100
    tuner.mean_time_between_losses_s = math.inf
    assert tuner.interval_steps() == 900
    for _ in range(20):
        tuner.observe_save(stall_s=8.0, seconds=10)
    tuner.mean_time_between_losses_s = 7200
    assert tuner.interval_steps() == 400
