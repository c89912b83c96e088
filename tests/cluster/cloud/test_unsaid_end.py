"""An attempt that recorded no end itself: why it ended, by its exit code, and what it cost, by its signs of life."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from a_cloud import PLACES, ACloud

from cluster.cloud.run import CloudRun, put_session
from cluster.cloud.templates import LONGEST_S
from cluster.events import iso_time, seconds_of
from cluster.exits import SET_UP_FAILED
from cluster.recovery import Action, StopReason


def test_a_set_up_that_fails_is_a_crash_that_counts_and_costs(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path, max_crashes=2, max_usd=5.0)
    number = put_session(cloud.store, cloud.session)
    names = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": number}
    later = time.time() + 3600.0
    for attempt in (1, 2):
        place = json.dumps(PLACES[0].to_json())
        told = {**names, "ALPACA_JOBS_ATTEMPT": str(attempt), "ALPACA_JOBS_PLACEMENT": place}
        run = CloudRun.open(told, clock=lambda: later)
        started = {"state": "started", "number": attempt, "place": PLACES[0].name}
        run.tell(run.decide(), **started, placement=PLACES[0].to_json())
        run.end_lost(exit_code=SET_UP_FAILED)
    assert run.spent_usd() == pytest.approx(0.06, rel=0.01)  # two hours from launch to failure, at 0.03 USD each
    decision = run.decide()
    assert (decision.action, decision.exit_code, decision.reason) == (Action.GIVE_UP, 1, StopReason.CRASHED)
    assert "set-up failed" in decision.words


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(None, "lost"), (137, "lost"), (139, "crashed"), (1, "crashed"), (3, "store_failure"), (76, "node_failure")],
)
def test_an_attempt_that_recorded_no_end_ended_as_its_exit_code_says(
    tmp_path: Path, exit_code: int | None, reason: str
) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    cloud.attempt(1, PLACES[0])
    run.end_lost(exit_code=exit_code)
    assert (cloud.log.records()[0].end or {})["stop_reason"] == reason


def test_an_attempt_that_hung_for_its_whole_week_ends_the_run_and_is_not_given_another(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    number = put_session(cloud.store, cloud.session)
    told = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": number}
    began = time.time()
    cloud.log.claim(1, {"placement": PLACES[0].to_json(), "started_at": iso_time(began)})
    cloud.store.put("control/alive-000001.json", b'{"t":"%s"}' % iso_time(began + LONGEST_S).encode())
    run = CloudRun.open(told, clock=lambda: began + LONGEST_S + 60.0)
    run.end_lost(exit_code=137)
    decision = run.decide()
    assert (decision.action, decision.exit_code, decision.reason) == (Action.GIVE_UP, 3, StopReason.LOST)
    assert "did not leave when it was asked to" in decision.words


def test_a_node_that_crashes_before_it_begins_is_bought_three_times_and_not_twelve(tmp_path: Path) -> None:
    cloud, bought = ACloud(tmp_path), 0
    number = put_session(cloud.store, cloud.session)
    told = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": number}
    while (decision := CloudRun.open(told).decide()).action is Action.RELAUNCH:
        bought += 1
        place = json.dumps(decision.placements[0].to_json())
        CloudRun.open(
            {**told, "ALPACA_JOBS_ATTEMPT": str(bought), "ALPACA_JOBS_PLACEMENT": place}
        ).end_lost(exit_code=1)  # fmt: skip
    assert (bought, decision.action, decision.exit_code) == (3, Action.GIVE_UP, 1)
    assert "it recorded no end; `sky jobs logs` has its words" in decision.words


def test_a_loss_that_nobody_saw_for_days_costs_until_its_machine_was_off(tmp_path: Path) -> None:
    cloud, days = ACloud(tmp_path, max_usd=1.0), 60 * 3600.0
    number = put_session(cloud.store, cloud.session)
    told = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": number}
    began = time.time()
    cloud.log.claim(1, {"placement": PLACES[0].to_json(), "started_at": iso_time(began)})
    cloud.store.put("control/alive-000001.json", b'{"t":"%s"}' % iso_time(began + 7200.0).encode())
    run = CloudRun.open(told, clock=lambda: began + days)
    run.end_lost()
    end = cloud.log.records()[0].end or {}
    assert end["seconds"] == pytest.approx(7200.0 + 900.0, abs=0.01)  # it is off a quarter of an hour after its node
    assert seconds_of(end["ended_at"]) == pytest.approx(began + 8100.0, abs=0.01)
    assert run.spent_usd() == pytest.approx(0.03 * 2.25)
    assert run.decide().action is Action.RELAUNCH  # the two days would have taken the budget
    place = json.dumps(PLACES[1].to_json())
    began_with = {**told, "ALPACA_JOBS_ATTEMPT": "2", "ALPACA_JOBS_PLACEMENT": place}
    run.tell(run.decide(), state="started", number=2, place=PLACES[1].name, placement=PLACES[1].to_json())
    CloudRun.open(began_with, clock=lambda: began + days).end_lost()
    never_began = cloud.log.records()[1].end or {}
    assert never_began["seconds"] == pytest.approx(75 * 60.0, abs=0.01)  # its set-up's own hour, and a quarter
