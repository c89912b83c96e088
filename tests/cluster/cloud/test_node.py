"""What a cloud's machine makes of what it is told, and what its exit code asks SkyPilot for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from a_cloud import BODY, PLACES, ACloud

from alpaca_jobs.spec import JobSpec
from cluster.cloud import node
from cluster.cloud.node import (
    Outcome,
    carry_out,
    group_here,
    joined_attempt,
    next_attempt,
    placement_here,
    settle,
)
from cluster.cloud.run import put_session
from cluster.cloud.templates import TaskSettings, render_tasks
from cluster.control import ask_cancel
from cluster.errors import ClusterError
from cluster.node.main import NodeArguments
from cluster.node.node_group import NodeGroup
from cluster.node.power import AFTER_LIMIT_MIN, PowerSwitch
from cluster.plan import LaunchPlan, Pricing
from cluster.recovery import StopReason
from cluster.runs.report import read_report
from cluster.runs.run_view import view_run


def test_without_a_plugin_a_region_with_both_kinds_counts_as_the_dearer_one(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    full = replace(PLACES[0], pricing=Pricing.ON_DEMAND, price_per_hour_usd=0.1)
    cloud.session = replace(cloud.session, plan=replace(cloud.session.plan, candidates=(*PLACES, full)))
    told = {"SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS", "region": "us-east-1", "zone": null}'}
    assert placement_here(cloud.run(), told) == full


def test_a_node_knows_where_it_is_by_what_was_handed_out_or_by_its_cluster(tmp_path: Path) -> None:
    run = ACloud(tmp_path).run()
    told = {"SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS", "region": "us-west-2", "zone": "us-west-2a"}'}
    assert placement_here(run, told) == PLACES[2]
    handed_out = replace(PLACES[1], pricing=Pricing.ON_DEMAND)
    assert placement_here(run, {**told, "ALPACA_JOBS_PLACEMENT": json.dumps(handed_out.to_json())}) == handed_out
    with pytest.raises(ClusterError, match="gcp/mars"):
        placement_here(run, {"SKYPILOT_CLUSTER_INFO": '{"cloud": "GCP", "region": "mars"}'})


def test_machines_that_work_together_know_their_number_and_their_heads_attempt(tmp_path: Path) -> None:
    log = ACloud(tmp_path).log
    assert group_here({"SKYPILOT_NODE_IPS": "10.0.0.4", "SKYPILOT_NODE_RANK": "0"}) == NodeGroup()
    member = group_here({"SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5", "SKYPILOT_NODE_RANK": "1"})
    assert (member.is_head, member.address, member.meeting_point) == (False, "10.0.0.5", "10.0.0.4:6479")
    log.claim(1, {"addresses": ["10.0.0.4", "10.0.0.5"]})
    log.put_end(1, {"stop_reason": "lost"})
    with pytest.raises(ClusterError, match="has begun no attempt"):
        joined_attempt(log, member, patience_s=0.01)
    log.claim(2, {"addresses": ["10.0.0.4", "10.0.0.5"]})
    assert joined_attempt(log, member) == 2


def test_without_a_plugin_a_node_takes_the_next_number_and_ends_the_one_before(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    assert next_attempt(cloud.log) == 1
    cloud.attempt(1, PLACES[0], reason="preempted")
    assert next_attempt(cloud.log) == 2


def recoverable(*, plugin: bool) -> set[int]:
    """The exit codes that SkyPilot starts another machine for, as a rendered task names them."""
    settings = TaskSettings(session="000001", code_folder="/code", has_plugin=plugin)
    plan = LaunchPlan("demo-x3fkd", JobSpec.model_validate(BODY), "s3://b/runs", PLACES, 1, "0+test")
    recovery = yaml.safe_load(render_tasks(plan, settings))["resources"]["job_recovery"]
    return set(recovery["recover_on_exit_codes"])


@pytest.mark.parametrize("reason", [one for one in StopReason if one not in (StopReason.DONE, StopReason.PART_DONE)])
def test_where_nothing_follows_no_exit_code_asks_for_another_machine(reason: StopReason) -> None:
    code = Outcome(reason, follows=False).exit_code
    assert code != 0 or reason is StopReason.DONE
    assert code not in recoverable(plugin=True) | recoverable(plugin=False)


def test_where_something_follows_the_exit_code_asks_for_it() -> None:
    codes = {
        one: Outcome(StopReason(one), follows=True).exit_code for one in ("preempted", "node_failure", "superseded")
    }
    assert set(codes.values()) == recoverable(plugin=False)
    assert {Outcome(StopReason(one), follows=True).exit_code for one in ("crashed", "out_of_memory")} < recoverable(
        plugin=True
    )


def test_a_machine_of_no_run_of_no_place_or_that_nobody_needs_asks_for_no_other(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    session = put_session(cloud.store, cloud.session)
    told = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": session}
    elsewhere = {**told, "SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS", "region": "mars"}'}
    gone = {**told, "ALPACA_JOBS_RUN": "demo-erased"}  # a launch that was interrupted while SkyPilot took it
    assert [carry_out(one).exit_code for one in (elsewhere, gone, {})] == [80, 80, 80]
    assert not carry_out(gone).is_replaced  # SkyPilot has to read the code


def test_without_a_plugin_a_machine_asks_the_table_before_it_begins(tmp_path: Path) -> None:
    """The limits hold there, too: SkyPilot's own strategy has none for restarts that an exit code asks for."""
    cloud = ACloud(tmp_path, max_fruitless=2)
    session = put_session(cloud.store, cloud.session)
    here = {"SKYPILOT_CLUSTER_INFO": '{"cloud": "AWS", "region": "us-east-1"}'}
    told = {"ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": session}
    for number in (1, 2):
        cloud.attempt(number, PLACES[0], reason="node_failure")  # say: the GPU that was paid for is not there
    assert carry_out({**told, **here}).exit_code == 80
    assert view_run(cloud.root, "demo-x3fkd").exit_code == 3
    ask_cancel(cloud.store)
    assert carry_out({**told, **here}).exit_code == 130


def test_an_attempt_that_ends_says_whether_anything_follows(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path, max_crashes=2)
    run = cloud.run()
    cloud.attempt(1, PLACES[0], reason="crashed")
    assert settle(run, StopReason.CRASHED, is_head=True, has_plugin=True).exit_code == 1
    cloud.attempt(2, PLACES[0], reason="crashed")
    assert settle(run, StopReason.CRASHED, is_head=False, has_plugin=True).exit_code == 80
    assert read_report(cloud.store) is None  # that is the head's to say
    assert settle(run, StopReason.CRASHED, is_head=True, has_plugin=True).exit_code == 80
    assert view_run(cloud.root, "demo-x3fkd").exit_code == 1


def test_a_stop_that_skypilot_alone_does_not_cure_is_said_to_be_the_end(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    run = cloud.run()
    cloud.attempt(1, PLACES[0], reason="crashed")
    assert settle(run, StopReason.CRASHED, is_head=True, has_plugin=False).exit_code not in recoverable(plugin=False)
    view = view_run(cloud.root, "demo-x3fkd")
    assert (view.state.value, view.exit_code) == ("failed", 1)
    assert "SkyPilot without our plugin makes none for it" in view.words


def test_a_machine_that_another_one_has_replaced_turns_itself_off_at_once(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    old, _ = cloud.run(), cloud.run()  # resumed elsewhere
    cloud.attempt(1, PLACES[0])
    outcome = settle(old, StopReason.SUPERSEDED, is_head=True, has_plugin=True)
    assert (outcome.is_replaced, outcome.exit_code) == (True, 80)


def test_an_attempt_that_outstays_a_limit_turns_its_machine_off_and_says_the_runs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud, off = ACloud(tmp_path), list[int]()
    session = put_session(cloud.store, cloud.session)
    told = {
        "ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": session,
        "ALPACA_JOBS_ATTEMPT": "1", "ALPACA_JOBS_PLACEMENT": json.dumps(PLACES[0].to_json()),
    }  # fmt: skip

    def hanging(arguments: NodeArguments) -> StopReason:  # its thread has recorded the end, and ends the process next
        arguments.alive()
        cloud.attempt(1, PLACES[0], reason="budget")
        arguments.outstayed(StopReason.BUDGET)
        raise SystemExit

    monkeypatch.setattr(node, "run_node", hanging)

    def off_in(minutes: int) -> bool:
        off.append(minutes)
        return True

    with pytest.raises(SystemExit):
        carry_out(told, PowerSwitch(is_rented=True, off_in=off_in))
    assert off == [AFTER_LIMIT_MIN]
    assert view_run(cloud.root, "demo-x3fkd").exit_code == 4
