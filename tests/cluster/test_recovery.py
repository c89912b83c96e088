"""The decision table: what follows each stop, and what holds for every history."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan import Placement, Pricing
from cluster.recovery import ALL_DONE, TABLE, Action, Decision, RecoveryPolicy, Stop, StopReason, decide

A, B, C = (Placement("local", region, None, "process", Pricing.SPOT, 1.0, 1) for region in "abc")
CANDIDATES = (A, B, C)
POLICY = RecoveryPolicy(first_backoff_s=10, max_backoff_s=60, max_wait_s=100)


def stop(reason: StopReason, place: Placement = A, *, at_s: float = 0.0, attempt: int = 1, **facts: object) -> Stop:
    return replace(Stop(attempt, reason, place, at_s), **facts)  # type: ignore[arg-type]


def where(decision: Decision) -> list[str]:
    return [place.region for place in decision.placements]


def test_every_reason_is_in_the_table() -> None:
    assert set(TABLE) == set(StopReason)


def test_a_run_that_has_yet_to_start_takes_the_plans_order() -> None:
    decision = decide([], POLICY, CANDIDATES, now=0)
    assert (decision.action, where(decision)) == (Action.RELAUNCH, ["a", "b", "c"])
    assert decision.words == "Starting; going to local/a."


@pytest.mark.parametrize(
    ("reason", "action", "first", "exit_code"),
    [
        (StopReason.DONE, Action.FINISH, None, 0),
        (StopReason.PREEMPTED, Action.RELAUNCH, "a", None),
        (StopReason.LOST, Action.RELAUNCH, "a", None),
        (StopReason.NODE_FAILURE, Action.RELAUNCH, "a", None),
        (StopReason.CAPACITY, Action.RELAUNCH, "a", None),
        (StopReason.CRASHED, Action.RELAUNCH, "b", None),
        (StopReason.OUT_OF_MEMORY, Action.RELAUNCH, "b", None),
        (StopReason.DIVERGED, Action.RELAUNCH, "b", None),
        (StopReason.STORE_FAILURE, Action.WAIT, None, None),
        (StopReason.USER_ERROR, Action.GIVE_UP, None, 1),
        (StopReason.BUDGET, Action.GIVE_UP, None, 4),
        (StopReason.DEADLINE, Action.GIVE_UP, None, 4),
        (StopReason.CANCELLED, Action.GIVE_UP, None, 130),
        (StopReason.REVIEW, Action.GIVE_UP, None, 0),
        (StopReason.SUPERSEDED, Action.FINISH, None, 3),
    ],
)
def test_what_follows_the_first_stop_in_region_b(
    reason: StopReason, action: Action, first: str | None, exit_code: int | None
) -> None:
    decision = decide([stop(reason, B)], POLICY, CANDIDATES, now=0)
    assert (decision.action, decision.exit_code) == (action, exit_code)
    assert (where(decision) or [None])[0] == first
    assert decision.words.endswith(".")


def test_a_lost_region_comes_last() -> None:
    assert where(decide([stop(StopReason.PREEMPTED, A)], POLICY, CANDIDATES, now=0)) == ["b", "c", "a"]
    assert where(decide([stop(StopReason.PREEMPTED, A)], POLICY, (A,), now=0)) == ["a"]


def test_regions_lost_within_the_hour_come_after_the_others_the_newest_loss_last() -> None:
    losses = [stop(StopReason.PREEMPTED, A, at_s=0, position=("train", 1)), stop(StopReason.LOST, B, at_s=600)]
    assert where(decide(losses, POLICY, CANDIDATES, now=600)) == ["c", "a", "b"]


def test_a_region_lost_long_ago_is_as_good_as_its_price_again() -> None:
    losses = [stop(StopReason.PREEMPTED, A, at_s=0, position=("train", 1)), stop(StopReason.LOST, B, at_s=9000)]
    assert where(decide(losses, POLICY, CANDIDATES, now=9000)) == ["a", "c", "b"]


def test_a_crash_stays_where_it_was_and_the_lost_regions_stay_behind() -> None:
    history = [stop(StopReason.PREEMPTED, A, position=("train", 1)), stop(StopReason.CRASHED, B, position=("train", 2))]
    assert where(decide(history, POLICY, CANDIDATES, now=10)) == ["b", "c", "a"]


def test_other_zones_of_a_lost_region_come_last_too() -> None:
    zones = [replace(A, infra="aws", region=region, zone=region + zone) for region in ("x", "y") for zone in "12"]
    decision = decide([stop(StopReason.LOST, zones[0])], POLICY, zones, now=0)
    assert [place.zone for place in decision.placements] == ["y1", "y2", "x1", "x2"]


def test_cheapest_goes_by_price_and_prefers_another_region_only_between_equals() -> None:
    policy = replace(POLICY, recover="cheapest")
    cheap = replace(A, price_per_hour_usd=0.5)
    unknown = replace(C, price_per_hour_usd=None)
    assert where(decide([stop(StopReason.PREEMPTED, cheap)], policy, (unknown, B, cheap), now=0)) == ["a", "b", "c"]
    assert where(decide([stop(StopReason.PREEMPTED, A)], policy, (A, B), now=0)) == ["b", "a"]


def test_an_error_names_its_own_exit_code() -> None:
    decision = decide([stop(StopReason.USER_ERROR, exit_code=2, detail="no seeds")], POLICY, CANDIDATES, now=0)
    assert decision.exit_code == 2
    assert "Attempt 1 in local/a, stopped by the job's own error: no seeds." in decision.words


def test_a_failure_that_says_trying_again_is_useless_ends_the_run() -> None:
    decision = decide([stop(StopReason.STORE_FAILURE, retryable=False)], POLICY, CANDIDATES, now=0)
    assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 3)


class TestCrashes:
    def test_the_third_at_the_same_step_stops_the_run(self) -> None:
        crash = stop(StopReason.CRASHED, position=("train", 400), detail="exit code 1")
        assert decide([crash] * 2, POLICY, CANDIDATES, now=0).action is Action.RELAUNCH
        decision = decide([crash] * 3, POLICY, CANDIDATES, now=0)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 1)
        assert "crashed, for the 3rd time after train 400: exit code 1." in decision.words

    def test_a_new_commit_in_between_starts_the_count_again(self) -> None:
        history = [stop(StopReason.CRASHED, position=("train", step)) for step in (100, 200, 200, 300)]
        assert decide(history, POLICY, CANDIDATES, now=0).action is Action.RELAUNCH

    def test_preemptions_and_refusals_in_between_do_not(self) -> None:
        kinds = [StopReason.CRASHED, StopReason.PREEMPTED, StopReason.CRASHED, StopReason.CAPACITY, StopReason.CRASHED]
        assert decide([stop(kind) for kind in kinds], POLICY, CANDIDATES, now=0).action is Action.GIVE_UP

    def test_memory_is_tried_as_often_as_a_micro_batch_is_halved(self) -> None:
        assert decide([stop(StopReason.OUT_OF_MEMORY)] * 7, POLICY, CANDIDATES, now=0).action is Action.RELAUNCH
        decision = decide([stop(StopReason.OUT_OF_MEMORY)] * 8, POLICY, CANDIDATES, now=0)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 1)
        assert "micro_batch_size" in decision.words

    def test_a_loss_that_is_not_finite_is_tried_once_more_from_the_same_commit(self) -> None:
        at = [stop(StopReason.DIVERGED, position=("train", step), detail="Step 412: nan") for step in (300, 400, 400)]
        assert decide(at[:2], POLICY, CANDIDATES, now=0).action is Action.RELAUNCH
        decision = decide(at, POLICY, CANDIDATES, now=0)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 1)
        assert "diverged, for the 2nd time after train 400: Step 412: nan." in decision.words

    def test_machines_that_never_live_as_long_as_a_save_are_not_bought_for_ever(self) -> None:
        history = [stop(StopReason.PREEMPTED)] * POLICY.max_fruitless
        decision = decide(history, POLICY, CANDIDATES, now=0)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 3)
        assert "12 attempts in a row" in decision.words


class TestCapacity:
    def test_a_region_that_refuses_is_skipped_and_the_lost_one_still_comes_last(self) -> None:
        history = [stop(StopReason.PREEMPTED, B)]
        seen = []
        for _ in CANDIDATES:
            first = decide(history, POLICY, CANDIDATES, now=0).placements[0]
            seen.append(first.region)
            history.append(stop(StopReason.CAPACITY, first))
        assert seen == ["a", "c", "b"]

    def test_when_all_refuse_it_waits_longer_each_round_and_starts_with_the_best_again(self) -> None:
        history: list[Stop] = []
        now, waits, firsts = 0.0, [], []
        while (decision := decide(history, POLICY, CANDIDATES, now)).action is not Action.GIVE_UP:
            if decision.action is Action.WAIT:
                waits.append(decision.wait_s)
                now += decision.wait_s
            else:
                firsts.append(decision.placements[0].region)
                history.append(stop(StopReason.CAPACITY, decision.placements[0], at_s=now))
        assert waits == [10, 20, 40, 30]
        assert firsts == list("abc") * 4
        assert decision.exit_code == 3
        assert "No capacity in local/a, local/b, local/c within 100 s" in decision.words

    def test_whoever_slept_through_the_wait_asks_every_place_once_more_before_giving_up(self) -> None:
        history = [stop(StopReason.CAPACITY, A, at_s=1), stop(StopReason.CAPACITY, B, at_s=2)]
        asked = []
        while (decision := decide(history, POLICY, (A, B), now=7200)).action is Action.RELAUNCH:
            asked.append(decision.placements[0])
            history.append(stop(StopReason.CAPACITY, decision.placements[0], at_s=7200))
        assert (asked, decision.action, decision.exit_code) == ([A, B], Action.GIVE_UP, 3)

    def test_half_a_wait_is_waited_to_its_end(self) -> None:
        decision = decide([stop(StopReason.CAPACITY, A, at_s=50)], POLICY, (A,), now=54)
        assert (decision.action, decision.wait_s) == (Action.WAIT, 6)

    def test_capacity_that_cannot_be_paid_is_not_waited_for(self) -> None:
        policy = replace(POLICY, max_usd=1.0)
        decision = decide([stop(StopReason.CAPACITY, A)], policy, CANDIDATES, now=0, spent_usd=1.0)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 4)

    def test_a_place_too_dear_for_the_rest_does_not_keep_the_others_from_being_waited_for(self) -> None:
        dear = replace(B, price_per_hour_usd=1000.0)
        policy = replace(POLICY, max_usd=1.0, restart_s=60)
        decision = decide([stop(StopReason.CAPACITY, A)], policy, (A, dear), now=0)
        assert decision.action is Action.WAIT


class TestLimits:
    def test_a_relaunch_that_the_deadline_cannot_pay_is_refused(self) -> None:
        policy = replace(POLICY, deadline_at_s=1000, restart_s=300)
        assert decide([stop(StopReason.LOST)], policy, CANDIDATES, now=699).action is Action.RELAUNCH
        decision = decide([stop(StopReason.LOST)], policy, CANDIDATES, now=700)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 4)
        assert "300 s are left until the deadline, and a new attempt needs 300 s" in decision.words

    def test_only_places_that_the_rest_of_the_budget_pays_are_left(self) -> None:
        dear = replace(B, price_per_hour_usd=100.0, num_nodes=2)
        policy = replace(POLICY, max_usd=10.0, restart_s=300)
        decision = decide([stop(StopReason.LOST, A)], policy, (A, dear), now=0, spent_usd=5.0)
        assert where(decision) == ["a"]  # two nodes of b for 300 s are 16.67 USD
        decision = decide([stop(StopReason.LOST, A)], policy, (A, dear), now=0, spent_usd=9.95)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 4)
        assert "9.95 of 10.00 USD are spent" in decision.words

    def test_an_unknown_price_keeps_no_budget(self) -> None:
        unknown = replace(A, price_per_hour_usd=None)
        assert decide([], POLICY, (unknown,), now=0).action is Action.RELAUNCH
        assert decide([], replace(POLICY, max_usd=5.0), (unknown,), now=0).action is Action.GIVE_UP

    def test_free_machines_need_no_budget(self) -> None:
        free = replace(A, price_per_hour_usd=0.0)
        assert decide([], replace(POLICY, max_usd=5.0), (free,), now=0, spent_usd=5.0).action is Action.RELAUNCH

    def test_a_wait_ends_at_the_deadline(self) -> None:
        policy = replace(POLICY, deadline_at_s=4)
        decision = decide([stop(StopReason.CAPACITY, A)], policy, (A,), now=0)
        assert (decision.action, decision.wait_s) == (Action.WAIT, 4)
        assert decide([stop(StopReason.CAPACITY, A)], policy, (A,), now=4).action is Action.GIVE_UP

    def test_without_a_place_there_is_nothing_to_try(self) -> None:
        decision = decide([], POLICY, (), now=0)
        assert (decision.action, decision.exit_code) == (Action.GIVE_UP, 3)


ENDLESS = [
    StopReason.PREEMPTED, StopReason.LOST, StopReason.NODE_FAILURE, StopReason.CRASHED, StopReason.OUT_OF_MEMORY,
    StopReason.DIVERGED, StopReason.STORE_FAILURE,
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), refusal=st.floats(0, 1), progress=st.floats(0, 1), num=st.integers(1, 5))
def test_every_run_ends_and_never_returns_to_a_lost_region_while_another_has_room(
    seed: int, refusal: float, progress: float, num: int
) -> None:
    rng = random.Random(seed)
    places = [replace(A, region=f"r{number}") for number in range(num)]
    history: list[Stop] = []
    now, step, refused = 0.0, 0, set[str]()
    for _ in range(5000):
        decision = decide(history, POLICY, places, now)
        if decision.action in (Action.GIVE_UP, Action.FINISH):
            assert decision.exit_code in (0, 1, 3)
            return
        if decision.action is Action.WAIT:
            assert 0 < decision.wait_s <= POLICY.max_backoff_s
            now += decision.wait_s
            refused.clear()
            continue
        place = decision.placements[0]
        before = next((one for one in reversed(history) if one.reason is not StopReason.CAPACITY), None)
        if before is not None and TABLE[before.reason].region == "elsewhere" and place == before.placement:
            others = {one.region for one in places} - {place.region}
            assert others <= refused, "it went back although a region had not been asked"
        now += 1
        if rng.random() < refusal:
            refused.add(place.region)
            history.append(stop(StopReason.CAPACITY, place, at_s=now))
            continue
        refused.clear()
        step += step < 30 and rng.random() < progress
        reason = StopReason.DONE if step == 30 else rng.choice(ENDLESS)
        history.append(stop(reason, place, at_s=now, position=("train", step)))
    pytest.fail("the run did not end within 5000 decisions")


@given(
    spent=st.floats(0, 20), budget=st.floats(0.1, 20), now=st.floats(0, 2000), restart=st.floats(0, 900),
    prices=st.lists(st.none() | st.floats(0, 50), min_size=1, max_size=4), reason=st.sampled_from(StopReason),
)  # fmt: skip
def test_no_relaunch_is_bought_that_budget_and_deadline_cannot_pay(
    spent: float, budget: float, now: float, restart: float, prices: list[float | None], reason: StopReason
) -> None:
    policy = replace(POLICY, max_usd=budget, deadline_at_s=1000.0, restart_s=restart)
    places = [replace(A, region=f"r{n}", price_per_hour_usd=price) for n, price in enumerate(prices)]
    decision = decide([stop(reason, places[0])], policy, places, now, spent_usd=spent)
    for place in decision.placements:
        assert place.price_per_hour_usd is not None
        assert spent + place.price_per_hour_usd * restart / 3600 <= budget
    if decision.action in (Action.RELAUNCH, Action.WAIT):
        assert now + (restart if decision.placements else decision.wait_s) <= 1000.0


def test_a_done_run_says_what_its_node_had_to_say() -> None:
    early = "Stopped early after step 24: 4 evaluations in a row brought no lower loss than before."
    decision = decide([stop(StopReason.DONE, detail=early)], POLICY, CANDIDATES, now=0)
    assert (decision.words, decision.exit_code) == (f"{early} The run is done.", 0)
    assert decide([stop(StopReason.DONE, detail=ALL_DONE)], POLICY, CANDIDATES, now=0).words == "The run is done."
