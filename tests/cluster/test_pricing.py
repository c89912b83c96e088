"""Money arithmetic: an unknown price is not a free one."""

from __future__ import annotations

import math

import pytest

from alpaca_jobs.spec import LimitsSpec
from cluster.pricing import Usage, budget_left_usd, deadline_left_s, lasts_s, machines_cost_usd, teacher_left_usd


def test_cost_is_hours_times_price_times_nodes() -> None:
    assert Usage(seconds=5400, num_nodes=2, price_per_hour_usd=8.0).cost_usd == pytest.approx(24.0)
    assert machines_cost_usd([Usage(3600, 1, 10.0), Usage(1800, 4, 1.0)]) == pytest.approx(12.0)
    assert machines_cost_usd([]) == 0.0


def test_unknown_price_makes_the_sum_unknown() -> None:
    assert Usage(10, 1, None).cost_usd is None
    assert machines_cost_usd([Usage(3600, 1, 10.0), Usage(10, 1, None)]) is None


def test_rest_of_the_budget() -> None:
    limits = LimitsSpec(max_usd=40, teacher_max_usd=15)
    assert budget_left_usd(limits, machines_usd=10, teacher_usd=5) == 25
    assert budget_left_usd(limits, machines_usd=50, teacher_usd=5) == 0
    assert teacher_left_usd(limits, machines_usd=10, teacher_usd=5) == 10
    assert teacher_left_usd(limits, machines_usd=33, teacher_usd=5) == 2
    assert budget_left_usd(LimitsSpec(), machines_usd=1e9, teacher_usd=0) == math.inf
    assert teacher_left_usd(LimitsSpec(), machines_usd=1e9, teacher_usd=0) == math.inf


def test_rest_of_the_deadline() -> None:
    assert deadline_left_s(LimitsSpec(deadline_h=2), elapsed_s=3600) == 3600
    assert deadline_left_s(LimitsSpec(deadline_h=2), elapsed_s=36000) == 0
    assert deadline_left_s(LimitsSpec(), elapsed_s=1e9) == math.inf


def test_what_a_rest_pays_for() -> None:
    assert lasts_s(20, job_price_per_hour_usd=10) == 7200
    assert lasts_s(20, job_price_per_hour_usd=0) == math.inf
    assert lasts_s(0, job_price_per_hour_usd=1) == 0
