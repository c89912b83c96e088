"""A cancel at any moment leaves no machine: our strategy inside SkyPilot, with SkyPilot's own list of clusters.

In a process of its own, as in test_strategy.py. Machines are what stands in that list; getting one is recorded here.
SkyPilot's server is asked in that process, too: what it raises takes the way to a client, and only HTTP is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from a_cloud import PLACES, ACloud

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.keys import CommitRef
from checkpoints.writer import CommitWriter
from cluster.cloud.run import put_session
from cluster.control import ask_cancel
from cluster.price.offers import SNAPSHOT
from cluster.runs.report import read_report
from cluster.runs.run_view import view_run

PHASES = ("queued", "provisioning", "got a machine", "no capacity", "between parts")
PROGRAM = """
import asyncio, json, sys
import sky
from sky import exceptions, global_user_state, jobs
from sky.jobs import utils as managed_job_utils
from sky.jobs.server import core
from checkpoints.store import Store
from cluster.cloud.sky_account import active_jobs
from cluster.cloud.sky_backend import SkyJobs
from cluster.cloud.sky_plugin import AlpacaJobsStrategy
from cluster.control import ask_cancel

managed_job_utils.terminate_cluster = lambda name: global_user_state.remove_cluster(name, terminate=True)
bought = []

def strategy_of(phase, told):
    task = sky.Task(run="true", envs=told)
    regions = ("us-east-1", "us-east-2", "us-west-2")
    task.set_resources([sky.Resources(infra=f"aws/{r}", instance_type="m6i.large", use_spot=True) for r in regions])
    strategy = AlpacaJobsStrategy.__new__(AlpacaJobsStrategy)
    strategy.dag = sky.Dag()
    strategy.dag.tasks = [task]
    strategy.cluster_name, strategy.pool = phase.replace(" ", "-"), None
    strategy.recover_on_exit_codes, strategy.restart_cnt_on_failure, strategy.max_restarts_on_errors = [65], 0, 0
    async def _launch(**asked):
        store = Store.open(told["ALPACA_JOBS_STORE"]).child(told["ALPACA_JOBS_RUN"])
        if phase == "no capacity":
            ask_cancel(store)
            raise exceptions.ManagedJobReachedMaxRetriesError("no capacity")
        bought.append(phase)
        global_user_state.add_or_update_cluster(strategy.cluster_name, None, set(), ready=False)
        ask_cancel(store)
        if phase == "provisioning":
            await asyncio.sleep(600)
        return 1.0
    strategy._launch = _launch
    return strategy, task

async def play(phase, told):
    strategy, task = strategy_of(phase, told)
    going = asyncio.create_task(strategy.launch())
    if phase == "provisioning":  # what SkyPilot's controller does to a job that is cancelled
        while phase not in bought:
            await asyncio.sleep(0.05)
        going.cancel()
    try:
        outcome = await going
    except asyncio.CancelledError:
        outcome = "CANCELLED"
    except exceptions.ManagedJobReachedMaxRetriesError as exc:
        outcome = str(exc)
    first = len(bought)
    if phase in ("provisioning", "got a machine"):  # a controller that was started again looks at it, and recovers it
        try:
            await strategy_of(phase, told)[0].launch()
        except exceptions.ManagedJobReachedMaxRetriesError as exc:
            outcome = f"{outcome}, then {exc}"
    left = [one["name"] for one in global_user_state.get_clusters()]
    return {"outcome": outcome, "bought": bought.count(phase), "left": left, "places": len(task.resources)}

def get(ask):
    try:
        return ask()
    except Exception as exc:
        raise exceptions.deserialize_exception(exceptions.serialize_exception(exc)) from None

sky.get, jobs.queue_v2 = get, lambda **asked: lambda: core.queue_v2(**asked)
# SkyPilot's default, a controller on a machine of its own, which was never started or was taken down.
assert (SkyJobs().status("demo-x3fkd"), SkyJobs().cancel("demo-x3fkd"), active_jobs()) == (None, None, [])
print(json.dumps({phase: asyncio.run(play(phase, told)) for phase, told in json.loads(sys.argv[1]).items()}))
"""


@pytest.mark.slow
def test_a_cancel_in_any_phase_and_without_a_controller_leaves_no_machine_and_buys_none(tmp_path: Path) -> None:
    clouds = {phase: ACloud(tmp_path / phase.replace(" ", "-")) for phase in PHASES}
    told = {}
    for phase, cloud in clouds.items():
        session = cloud.session
        if phase == "between parts":
            session = replace(session, plan=replace(session.plan, generation=PLACES))
            cloud.attempt(1, PLACES[0])
            CommitWriter(cloud.store, LAYOUT, CommitRef("generate", 1, 1)).publish(
                meta={"complete": True, "rows_total": 8}
            )
            cloud.log.put_end(1, {"stop_reason": "part_done", "ended_at": "2026-11-22T06:40:00.000Z", "seconds": 60.0})
        told[phase] = {
            "ALPACA_JOBS_STORE": cloud.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd",
            "ALPACA_JOBS_SESSION": put_session(cloud.store, session),
        }  # fmt: skip
        if phase in ("queued", "between parts"):
            ask_cancel(cloud.store)
    home = tmp_path / "home"
    shutil.copytree(SNAPSHOT, home / ".sky" / "catalogs" / "v8")
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(told)], capture_output=True, text=True, env=environ, timeout=110
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [one["left"] for one in found.values()] == [[]] * len(PHASES)
    bought = {phase: one["bought"] for phase, one in found.items()}
    assert bought == {"queued": 0, "provisioning": 1, "got a machine": 1, "no capacity": 0, "between parts": 0}
    assert {one["places"] for one in found.values()} == {3}, "the task is as it was"
    assert found["provisioning"]["outcome"].startswith("CANCELLED, then ")
    for phase, cloud in clouds.items():
        assert "somebody asked for it (alpaca-jobs cancel)" in str(found[phase]["outcome"]), phase
        assert (read_report(cloud.store) or {})["exit_code"] == 130
        assert view_run(cloud.root, "demo-x3fkd").state.value == "stopped"
