"""Whole runs with a real supervisor and real nodes that die in every way a node can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from cluster.errors import ClusterError, RunActive, RunFinished
from cluster.launch.following import follow_run
from cluster.launch.launching import start_run
from cluster.launch.stopping import cancel_run, remove_run
from cluster.local.supervisor import supervise
from cluster.process_tree import find_marked, kill_marked
from cluster.runs.report import read_report
from cluster.runs.run_view import RunState, list_runs

pytestmark = pytest.mark.process


def report_of(runs: Any, run_id: str) -> dict[str, Any]:
    report = read_report(runs.root.child(run_id))
    assert report is not None
    return dict(report)


def test_a_killed_node_comes_back_elsewhere_from_its_newest_commit(runs: Any) -> None:
    run_id = runs.start({"steps": 20, "child": True, "2": {"child": False}})
    node = runs.node(run_id, attempt=1, step=6)
    assert len(find_marked(node.nonce)) == 2  # with a child in a session of its own
    os.kill(min(process.pid for process in find_marked(node.nonce)), signal.SIGKILL)
    events = runs.follow(run_id)
    assert find_marked(node.nonce) == []
    assert events[-1].kind == "end"
    assert events[-1].fields["exit_code"] == 0
    report = report_of(runs, run_id)
    assert report["regions"] == ["local/a", "local/b"]
    assert report["stop_reasons"] == ["lost", "done"]
    base = report["attempts"][1]["base"]
    assert (base["stage"], base["attempt"]) == ("train", 1)
    assert report["lost_steps"] == [report["attempts"][0]["reached"][1] - base["position"]]
    assert report["lost_steps_max"] <= 4
    assert report["step"] == 20
    goodput = report["goodput"]
    assert goodput["wall_s"] == pytest.approx(
        goodput["useful_s"] + goodput["lost_s"] + goodput["saving_s"] + goodput["waiting_s"], abs=0.01
    )
    assert goodput["useful_s"] > 0.5
    words = [event.fields["words"] for event in events if event.kind == "decision"]
    assert words[:2] == [
        "Starting; going to local/a.",
        "Attempt 1 in local/a, lost: killed by SIGKILL; going to local/b.",
    ]
    view = runs.view(run_id)
    assert (view.state, view.step, view.total_steps, view.lag_steps) == (RunState.DONE, 20, 20, 0)
    assert list_runs(runs.root) == [run_id]
    with pytest.raises(RunFinished, match="is done, after 2 attempt"):
        runs.resume(run_id, {})
    with pytest.raises(RunFinished):
        cancel_run(runs.root, run_id, runs.home)
    assert remove_run(runs.root, run_id, runs.home) > 10
    assert runs.root.list() == []
    assert runs.home.runs() == []


def test_a_node_told_by_its_machine_saves_and_loses_nothing(runs: Any) -> None:
    run_id = runs.start({"steps": 14})
    node = runs.node(run_id, attempt=1, step=5)
    os.kill(min(process.pid for process in find_marked(node.nonce)), signal.SIGTERM)
    runs.follow(run_id)
    report = report_of(runs, run_id)
    assert report["stop_reasons"] == ["preempted", "done"]
    assert report["lost_steps"] == [0]


def test_a_node_that_stands_still_is_lost_and_killed(runs: Any) -> None:
    run_id = runs.start({"1": {"freeze_at": 3}})
    events = runs.follow(run_id)
    report = report_of(runs, run_id)
    assert report["stop_reasons"] == ["lost", "done"]
    assert report["attempts"][0]["detail"] == "its lease stood still for 3 s"
    assert events[-1].fields["exit_code"] == 0
    assert runs.backend.find(run_id) == []


def test_a_region_without_capacity_is_skipped_and_none_at_all_is_waited_for(runs: Any) -> None:
    runs.capacity(a=0, b=0)
    run_id = runs.start({"steps": 6}, regions="ab")
    seen = []
    for event in follow_run(runs.root, run_id, runs.home, poll_s=0.05):
        if event.kind == "decision":
            seen.append(event.fields["action"])
            if seen[-1] == "wait":
                runs.capacity(a=0, b=1)
    report = report_of(runs, run_id)
    assert report["regions"] == ["local/b"]
    assert seen[:3] == ["relaunch", "relaunch", "wait"]
    assert seen[-1] == "finish"


def test_a_run_given_up_for_want_of_capacity_is_resumed(runs: Any) -> None:
    runs.capacity(a=0)
    run_id = runs.start({}, regions="a", compute={"max_wait_s": 0.3})
    end = runs.follow(run_id)[-1]
    assert (end.fields["exit_code"], end.fields["reason"]) == (3, "capacity")
    assert runs.view(run_id).state is RunState.FAILED
    runs.capacity(a=1)
    runs.resume(run_id, {"steps": 4})
    assert runs.follow(run_id, since=end.t)[-1].fields["exit_code"] == 0


def test_a_crash_at_the_same_step_stops_the_run_after_three_tries(runs: Any) -> None:
    run_id = runs.start({"crash_at": 6, "step_s": 0.01})
    end = runs.follow(run_id)[-1]
    assert end.fields["exit_code"] == 1
    assert "for the 3rd time after train 4: exit code 1." in end.fields["words"]
    report = report_of(runs, run_id)
    assert report["stop_reasons"] == ["crashed"] * 3
    assert report["regions"] == ["local/a"] * 3
    runs.resume(run_id, {})
    assert runs.follow(run_id, since=end.t)[-1].fields["exit_code"] == 0
    assert report_of(runs, run_id)["outcome"] == "done"


def test_wrong_input_found_by_the_node_stops_the_run_at_once(runs: Any) -> None:
    run_id = runs.start({"end": {"stop_reason": "user_error", "exit_code": 2, "detail": "no such model"}})
    end = runs.follow(run_id)[-1]
    assert end.fields["exit_code"] == 2
    assert "no such model" in end.fields["words"]
    assert len(report_of(runs, run_id)["attempts"]) == 1


def test_a_node_that_dies_before_it_claims_leaves_a_record(runs: Any) -> None:
    run_id = runs.start({"steps": 4, "1": {"leave_before_claim": 76}})
    runs.follow(run_id)
    report = report_of(runs, run_id)
    assert report["stop_reasons"] == ["node_failure", "done"]
    assert report["regions"] == ["local/a", "local/b"]


def test_a_node_that_can_never_be_started_is_given_up(runs: Any) -> None:
    plan = runs.plan()
    start_run(plan, runs.home, node_command=["/nowhere/python"])
    end = runs.follow(plan.run_id)[-1]
    assert end.fields["exit_code"] == 3
    assert "12 attempts in a row ended without one new commit" in end.fields["words"]
    assert "/nowhere/python could not be started" in end.fields["words"]


def test_a_cancelled_run_saves_stops_and_goes_on_when_resumed(runs: Any) -> None:
    run_id = runs.start({"steps": 1000})
    runs.node(run_id, attempt=1, step=5)
    with pytest.raises(RunActive, match="its supervisor works on this machine"):
        runs.resume(run_id, {})
    with pytest.raises(RunActive, match="already has a supervisor"):
        supervise(runs.home, run_id)
    with pytest.raises(RunActive, match="To remove it, stop it first"):
        remove_run(runs.root, run_id, runs.home)
    assert runs.view(run_id).state is RunState.RUNNING
    cancel_run(runs.root, run_id, runs.home)
    end = runs.follow(run_id)[-1]
    assert (end.fields["exit_code"], end.fields["reason"]) == (130, "cancelled")
    view = runs.view(run_id)
    assert (view.state, view.lag_steps) == (RunState.STOPPED, 0)  # it saved before it left
    runs.resume(run_id, {"steps": view.step + 4}, exclude_regions=["a"])
    assert runs.follow(run_id, since=end.t)[-1].fields["exit_code"] == 0
    report = report_of(runs, run_id)
    assert report["regions"] == ["local/a", "local/b"]
    assert report["lost_steps"] == [0]


def test_a_deaf_node_is_killed_when_its_window_is_over(runs: Any) -> None:
    run_id = runs.start({"steps": 1000, "deaf": True}, notice_s=0.3)
    runs.node(run_id, attempt=1, step=2)
    cancel_run(runs.root, run_id, runs.home)
    end = runs.follow(run_id)[-1]
    assert end.fields["exit_code"] == 130
    assert end.fields["words"].startswith("Cancelled: somebody asked for it (alpaca-jobs cancel); killed.")
    assert runs.backend.find(run_id) == []


def test_a_deadline_ends_the_run_with_its_state_saved(runs: Any) -> None:
    run_id = runs.start({"steps": 1000}, limits={"deadline_h": 3 / 3600})
    end = runs.follow(run_id)[-1]
    assert (end.fields["exit_code"], end.fields["reason"]) == (4, "deadline")
    assert runs.view(run_id).lag_steps == 0
    runs.resume(run_id, {"steps": 1}, deadline_h=1)
    assert runs.follow(run_id, since=end.t)[-1].fields["exit_code"] == 0


def test_a_budget_ends_the_run_with_its_state_saved(runs: Any) -> None:
    run_id = runs.start({"steps": 1000}, price=3600.0, limits={"max_usd": 3.0})  # a dollar a second
    end = runs.follow(run_id)[-1]
    assert (end.fields["exit_code"], end.fields["reason"]) == (4, "budget")
    assert "of 3.00 USD are spent" in end.fields["words"]
    report = report_of(runs, run_id)
    assert 3.0 < report["cost_usd"] < 8.0
    runs.resume(run_id, {})
    again = runs.follow(run_id, since=end.t)
    assert [event.kind for event in again if event.kind != "log"] == ["decision", "end"]  # no machine was bought
    assert again[-1].fields["exit_code"] == 4


def test_a_run_that_another_launcher_took_over_is_left_to_it(runs: Any) -> None:
    run_id = runs.start({"steps": 1000})
    runs.node(run_id, attempt=1, step=2)
    AttemptLog(runs.root.child(run_id), LAYOUT).claim(2, {"placement": runs.plan().candidates[1].to_json()})
    end = runs.follow(run_id)[-1]
    assert (end.fields["exit_code"], end.fields["reason"]) == (3, "superseded")
    assert "Another launcher has taken this run over." in end.fields["words"]
    assert read_report(runs.root.child(run_id)) is None
    assert runs.backend.find(run_id) == []
    assert AttemptLog(runs.root.child(run_id), LAYOUT).records()[0].end is None  # theirs to write


def test_of_two_launchers_that_hand_out_the_same_number_the_slower_leaves(runs: Any) -> None:
    run_id = runs.start({"other_was_faster": True})
    end = runs.follow(run_id)[-1]
    assert (end.fields["exit_code"], end.fields["reason"]) == (3, "superseded")
    assert "attempt 1 was claimed by another launcher" in end.fields["words"]


def test_a_supervisor_that_cannot_go_on_says_so_and_leaves_nothing_running(runs: Any) -> None:
    run_id = runs.start({"steps": 1000, "1": {"steps": 1000}})
    node = runs.node(run_id, attempt=1, step=2)
    (runs.home.root / "capacity.json").write_text("{")
    kill_marked(node.nonce)
    end = runs.follow(run_id)[-1]
    assert end.fields["exit_code"] == 2
    assert "capacity.json, line 1: not JSON" in end.fields["words"]
    assert runs.backend.find(run_id) == []


def test_a_supervisor_told_to_leave_takes_its_node_with_it(runs: Any) -> None:
    run_id = runs.start({"steps": 1000})
    runs.node(run_id, attempt=1, step=5)
    runs.kill_supervisor(run_id, signal.SIGTERM)
    end = runs.follow(run_id)[-1]
    assert (end.kind, end.fields["exit_code"]) == ("end", 130)
    assert "its supervisor was told to leave" in end.fields["words"]
    assert runs.backend.find(run_id) == []
    assert runs.view(run_id).lag_steps == 0


def test_a_killed_supervisor_leaves_a_node_that_the_next_one_adopts(runs: Any) -> None:
    run_id = runs.start({"steps": 100})
    node = runs.node(run_id, attempt=1, step=3)
    runs.kill_supervisor(run_id)
    assert [left.nonce for left in runs.home.leftovers() if left.run_id == run_id] == [node.nonce]
    with pytest.raises(ClusterError, match=r"died without a word.*Its node is still running \(attempt 1\)"):
        runs.follow(run_id)
    view = runs.view(run_id)
    assert view.state is RunState.RUNNING
    assert "its supervisor on this machine is gone" in view.words
    runs.resume(run_id, {})
    assert runs.follow(run_id)[-1].fields["exit_code"] == 0
    report = report_of(runs, run_id)
    assert (report["regions"], report["stop_reasons"]) == (["local/a"], ["done"])


def test_a_node_that_finished_alone_is_reported_by_the_resume(runs: Any) -> None:
    run_id = runs.start({"steps": 8})
    runs.node(run_id, attempt=1, step=3)
    runs.kill_supervisor(run_id)
    log = AttemptLog(runs.root.child(run_id), LAYOUT)
    while log.records()[0].end is None:
        time.sleep(0.05)
    assert read_report(runs.root.child(run_id)) is None
    runs.resume(run_id, {})
    assert runs.follow(run_id)[-1].fields["exit_code"] == 0
    assert report_of(runs, run_id)["stop_reasons"] == ["done"]
    with pytest.raises(RunFinished):
        runs.resume(run_id, {})


def test_a_node_that_died_after_its_supervisor_is_recorded_and_its_region_avoided(runs: Any) -> None:
    run_id = runs.start({"steps": 1000})
    node = runs.node(run_id, attempt=1, step=5)
    runs.kill_supervisor(run_id)
    kill_marked(node.nonce)
    runs.resume(run_id, {"steps": 8})
    assert runs.follow(run_id)[-1].fields["exit_code"] == 0
    report = report_of(runs, run_id)
    assert (report["regions"], report["stop_reasons"]) == (["local/a", "local/b"], ["lost", "done"])
    ended = AttemptLog(runs.root.child(run_id), LAYOUT).records()[0].end
    assert ended is not None
    assert ended["reached"][0] == "train", "as the dead node's disk says, whatever it still told"
    assert ended["reached"][1] >= 5
    assert ended["seconds"] > 0


def test_an_orphan_in_an_excluded_region_has_to_leave(runs: Any) -> None:
    run_id = runs.start({"steps": 1000})
    runs.node(run_id, attempt=1, step=5)
    runs.kill_supervisor(run_id)
    runs.resume(run_id, {"steps": 8}, exclude_regions=["local/a"])
    assert runs.follow(run_id)[-1].fields["exit_code"] == 0
    report = report_of(runs, run_id)
    assert (report["regions"], report["stop_reasons"]) == (["local/a", "local/b"], ["preempted", "done"])
    assert report["lost_steps"] == [0]


def test_a_run_survives_the_process_and_the_session_that_started_it(runs: Any) -> None:
    plan = runs.plan()
    (runs.folder / "plan.json").write_text(json.dumps(plan.to_json()))
    code = """
import json, sys, time
from pathlib import Path
from cluster.runs.home import Home
from cluster.launch.launching import start_run
from cluster.plan import LaunchPlan
plan = LaunchPlan.from_json(json.loads(Path(sys.argv[1]).read_text()))
start_run(plan, Home(Path(sys.argv[2])), node_command=json.loads(sys.argv[3]))
print("started", flush=True)
time.sleep(600)
"""
    command = json.dumps(runs.command({"steps": 40}))
    arguments = [sys.executable, "-c", code, str(runs.folder / "plan.json"), str(runs.home.root), command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True) as terminal:
        assert terminal.stdout is not None
        assert terminal.stdout.readline() == b"started\n"
        os.killpg(terminal.pid, signal.SIGHUP)
        os.killpg(terminal.pid, signal.SIGKILL)
    pid = runs.home.run(plan.run_id).supervisor_pid()
    assert pid is not None
    assert psutil.Process(pid).terminal() is None
    assert runs.follow(plan.run_id)[-1].fields["exit_code"] == 0
