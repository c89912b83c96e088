"""When a machine that nobody takes away is worth its price: by hand, and over every outlook."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.course import Course, expected
from cluster.on_demand import Need, Outlook, on_demand_need
from cluster.plan import Placement, Pricing
from cluster.recovery import Action, Decision, RecoveryPolicy, Stop, StopReason, decide

SPOT = Placement("aws", "us-east-1", None, "p4d.24xlarge", Pricing.SPOT, 10.0, 1, gpus="A100:8")
FULL = replace(SPOT, pricing=Pricing.ON_DEMAND, price_per_hour_usd=30.0)
OTHER_SPOT, OTHER_FULL = (replace(place, region="us-west-2") for place in (SPOT, FULL))
PLACES = (SPOT, OTHER_SPOT, FULL, OTHER_FULL)
# An hour of work is left; a machine is found in 300 s, is at work 400 s later, saves every 600 s, exports for 100 s.
HOUR = Course(
    work_s=3600, work_spread=0.0, start_s=400, restart_s=400, away_s=300, save_interval_s=600, losses_per_hour=0.2,
    finish_s=100,
)  # fmt: skip
ALONE_S = 300 + 400 + 3600 + 100
WITH_A_LOSS_S = ALONE_S + 300 + 400 + 600
POLICY = RecoveryPolicy(on_demand="when-needed")
LOST = Stop(1, StopReason.PREEMPTED, SPOT, at_s=0.0, position=("train", 5))


def need(course: Course = HOUR, *, left_s: float | None = None, left_usd: float | None = None, **more: Any) -> Need:
    return on_demand_need(Outlook(course, source="as timed", **more), SPOT, FULL, left_s=left_s, left_usd=left_usd)


def after(history: list[Stop], *, now: float = 0.0, spent_usd: float = 0.0, **policy: Any) -> Decision:
    return decide(history, replace(POLICY, **policy), PLACES, now, spent_usd=spent_usd, outlook=Outlook(HOUR))


def test_without_a_deadline_cheap_spot_machines_stay_the_choice() -> None:
    assert need() == Need(False)
    assert need(left_s=10 * 3600.0, left_usd=1000.0) == Need(False)


@pytest.mark.parametrize(("left_s", "is_needed"), [(WITH_A_LOSS_S, False), (WITH_A_LOSS_S - 1, True), (ALONE_S, True)])
def test_on_demand_from_the_moment_on_that_another_loss_would_cross_the_deadline(
    left_s: float, is_needed: bool
) -> None:
    assert need(left_s=left_s).is_needed is is_needed


def test_the_words_say_what_is_left_and_what_spot_could_take() -> None:
    assert need(left_s=5400).words == (
        "1 h 30 min are left until the deadline, and on spot the rest could take 1 h 35 min with one more loss "
        "(as timed)"
    )


def test_a_deadline_that_on_demand_would_miss_too_is_no_reason_to_pay_for_it() -> None:
    found = need(left_s=ALONE_S - 1)
    assert not found.is_needed
    assert found.words.endswith("but on demand it would need 1 h 13 min and be late as well")


def test_what_follows_on_other_machines_needs_its_time_too() -> None:
    assert not need(left_s=WITH_A_LOSS_S + 3600, then_s=3600).is_needed
    assert need(left_s=WITH_A_LOSS_S + 3599, then_s=3600).is_needed


def test_a_budget_that_on_demand_would_cross_keeps_the_run_on_spot() -> None:
    rest_usd = 30 * (400 + 3600 + 100) / 3600  # 34.17
    assert need(left_s=5400, left_usd=rest_usd + 0.01).is_needed
    found = need(left_s=5400, left_usd=rest_usd - 0.01)
    assert not found.is_needed
    assert "but on demand (34.17 USD) the budget would not last to the end" in found.words
    assert not need(left_s=5400, left_usd=rest_usd + 0.01, other_usd=1.0).is_needed  # the teacher wants its part


def test_spot_machines_that_are_lost_too_often_cost_more_than_they_save() -> None:
    often = replace(HOUR, losses_per_hour=8.0)
    spot_usd = 10 * expected(often).billed_s / 3600
    assert spot_usd > 30 * 4100 / 3600
    found = need(often)
    assert found.is_needed
    assert f"expected to cost {spot_usd:.2f} USD on spot, with" in found.words
    assert "34.17 USD on demand" in found.words
    assert need(replace(HOUR, losses_per_hour=1e6)).words == "on spot the rest cannot be expected to finish (as timed)"


def test_an_unknown_price_is_never_dearer_and_never_within_a_budget() -> None:
    unknown, outlook = replace(FULL, price_per_hour_usd=None), Outlook(replace(HOUR, losses_per_hour=8.0))
    assert not on_demand_need(outlook, SPOT, unknown, left_s=None, left_usd=None).is_needed
    assert on_demand_need(outlook, SPOT, unknown, left_s=5400, left_usd=None).is_needed
    assert not on_demand_need(outlook, SPOT, unknown, left_s=5400, left_usd=1e6).is_needed


@given(
    work=st.floats(0, 1e5), every=st.floats(1, 1e4), start=st.floats(0, 3e3), away=st.floats(0, 3e3),
    finish=st.floats(0, 3e3), slack=st.floats(0, 1e5), lost_after=st.floats(0, 1),
)  # fmt: skip
@example(work=0.0, every=1.0, start=0.0, away=0.0, finish=2.0, slack=1.0, lost_after=1.0)
def test_a_run_that_stays_on_spot_can_be_lost_at_any_moment_and_still_be_finished_on_demand(
    work: float, every: float, start: float, away: float, finish: float, slack: float, lost_after: float
) -> None:
    """The rule's promise: no loss comes too late for on demand, whenever it comes."""
    course = Course(work, 0.0, start, start, away, every, 0.0, finish)
    left_s = Outlook(course).undisturbed_s + slack
    if on_demand_need(Outlook(course), SPOT, FULL, left_s=left_s, left_usd=None).is_needed:
        return
    worked = lost_after * (work + finish)
    saved = min(math.floor(worked / every) * every, work) if worked < work else work
    rest = Outlook(replace(course, work_s=work - saved))
    assert left_s - (away + start + worked) >= rest.undisturbed_s - 1e-6


class TestInTheTable:
    def test_the_next_attempt_is_on_demand_elsewhere_and_says_why(self) -> None:
        decision = after([LOST], deadline_at_s=5400.0)
        assert decision.action is Action.RELAUNCH
        assert decision.placements == (OTHER_FULL, FULL, OTHER_SPOT, SPOT)
        assert decision.on_demand.startswith("1 h 30 min are left until the deadline")
        assert decision.words.endswith("; going to aws/us-west-2, on demand.")

    def test_a_tight_deadline_starts_on_demand(self) -> None:
        assert after([], deadline_at_s=5400.0).placements[0] == FULL
        assert after([], deadline_at_s=54000.0).placements[0] == SPOT

    def test_with_time_enough_it_stays_on_spot(self) -> None:
        decision = after([LOST], deadline_at_s=54000.0)
        assert decision.placements == (OTHER_SPOT, SPOT, OTHER_FULL, FULL)
        assert decision.on_demand == ""
        assert decision.words.endswith("; going to aws/us-west-2, on spot.")

    @pytest.mark.parametrize("allowed", ["never", "last-resort"])
    def test_who_did_not_ask_for_it_does_not_pay_for_it(self, allowed: str) -> None:
        assert after([LOST], deadline_at_s=5400.0, on_demand=allowed).placements[0] == OTHER_SPOT

    def test_nothing_is_known_so_nothing_is_needed(self) -> None:
        policy = replace(POLICY, deadline_at_s=5400.0)
        assert decide([LOST], policy, PLACES, 0.0, outlook=None).placements[0] == OTHER_SPOT

    def test_the_wait_for_spot_ends_when_the_time_is_needed(self) -> None:
        """While nobody has a spot machine the clock goes on, and the same question is asked again."""
        refused = [LOST, *(Stop(2, StopReason.CAPACITY, place, at_s=10.0) for place in (OTHER_SPOT,))]
        assert after(refused, now=10.0, deadline_at_s=WITH_A_LOSS_S + 20.0).placements == (SPOT, OTHER_FULL, FULL)
        decision = after(refused, now=30.0, deadline_at_s=WITH_A_LOSS_S + 20.0)
        assert decision.placements == (OTHER_FULL, FULL, SPOT)
        assert decision.words.startswith("Spot in aws/us-west-2 has no capacity; ")

    def test_on_demand_machines_that_are_sold_out_too_leave_spot_ones(self) -> None:
        refused = [LOST, *(Stop(2, StopReason.CAPACITY, place, at_s=10.0) for place in (OTHER_FULL, FULL))]
        decision = after(refused, now=10.0, deadline_at_s=5400.0)
        assert decision.placements[0] == OTHER_SPOT
        assert decision.on_demand == ""

    def test_a_last_resort_says_that_no_spot_machine_was_to_be_had(self) -> None:
        refused = [LOST, *(Stop(2, StopReason.CAPACITY, place, at_s=10.0) for place in (OTHER_SPOT, SPOT))]
        decision = after(refused, now=10.0, on_demand="last-resort")
        assert decision.placements == (OTHER_FULL, FULL)
        assert decision.on_demand == "no spot machine was to be had"

    def test_what_the_budget_does_not_pay_stays_on_spot_in_words(self) -> None:
        decision = after([LOST], deadline_at_s=5400.0, max_usd=40.0, spent_usd=20.0)
        assert decision.placements[0] == OTHER_SPOT
        assert "but on demand (34.17 USD) the budget would not last to the end; going to aws/us-west-2, on spot." in (
            decision.words
        )
