"""The strategy inside SkyPilot: what it hands to SkyPilot's own launch, with SkyPilot's own tasks and resources.

In a process of its own: importing SkyPilot takes seconds. Launching and taking down are recorded and answered here; the
box (tests/cloud) does both for real.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.cloud.run import put_session
from cluster.course import Course
from cluster.event_reading import read_events
from cluster.events import utc_now
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.price.offers import SNAPSHOT
from cluster.recovery import RecoveryPolicy
from cluster.runs.session import Session

SPOT = tuple(
    Placement("aws", region, None, "m6i.large", Pricing.SPOT, price, 1)
    for region, price in (("us-east-1", 0.03), ("us-east-2", 0.04))
)
FULL = tuple(replace(place, pricing=Pricing.ON_DEMAND, price_per_hour_usd=0.096) for place in SPOT)
PROGRAM = """
import asyncio, json, sys
import sky
from sky import exceptions, global_user_state
from sky.jobs import recovery_strategy, utils as managed_job_utils
from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.cloud.sky_plugin import AlpacaJobsStrategy, telling_code

told, (refusing, broken, lost) = json.loads(sys.argv[1]), (given.split(",") for given in sys.argv[2:])
managed_job_utils.terminate_cluster = lambda name: global_user_state.remove_cluster(name, terminate=True)
task = sky.Task(run="true", envs=told)
places = [(region, spot) for spot in (True, False) for region in ("us-east-1", "us-east-2")]
task.set_resources([sky.Resources(infra=f"aws/{r}", instance_type="m6i.large", use_spot=s) for r, s in places])
strategy = AlpacaJobsStrategy.__new__(AlpacaJobsStrategy)
strategy.dag = sky.Dag()
strategy.dag.tasks = [task]
strategy.cluster_name, strategy.pool = "demo", None
strategy.recover_on_exit_codes, strategy.restart_cnt_on_failure, strategy.max_restarts_on_errors = [65], 0, 0
async def forget(_):
    claim = {"placement": json.loads(task.envs["ALPACA_JOBS_PLACEMENT"]), "started_at": "2026-11-22T20:00:00Z"}
    store = Store.open(told["ALPACA_JOBS_STORE"]).child(told["ALPACA_JOBS_RUN"])
    AttemptLog(store, LAYOUT).claim(int(task.envs["ALPACA_JOBS_ATTEMPT"]), claim)
    global_user_state.remove_cluster("demo", terminate=True)
recovery_strategy.StrategyExecutor._wait_until_job_starts_on_cluster = forget
async def _launch(**asked):
    (one,) = task.resources
    name = f"{one.region}/{'spot' if one.use_spot else 'on demand'}"
    price = json.loads(task.envs["ALPACA_JOBS_PLACEMENT"])["price_per_hour_usd"]
    print("TRIED", name, task.envs["ALPACA_JOBS_ATTEMPT"], price)
    if name in broken:  # the machine comes, SkyPilot cannot reach it, and cleans up
        global_user_state.add_or_update_cluster("demo", None, set(), ready=False)
        strategy._cleanup_cluster()
    if name in lost:  # its node is at work when it goes, and SkyPilot has not seen the task begin
        global_user_state.add_or_update_cluster("demo", None, set(), ready=True)
        assert await strategy._wait_until_job_starts_on_cluster() is None
        strategy._cleanup_cluster()
    if name in (*refusing, *broken, *lost):
        raise exceptions.ManagedJobReachedMaxRetriesError("no capacity")
    return 1.0
strategy._launch = _launch
for codes in (None, [137], [0, 137], [80], [2, 137], [137, 65]):
    assert strategy.should_restart_on_failure(exit_codes=codes) is (codes not in ([80], [2, 137])), codes
assert (strategy._exit_code, telling_code([137, 75]), telling_code([139, 137])) == (65, 75, 139)
strategy._exit_code = None
if "set-up" in broken:
    assert strategy.should_restart_on_failure(exit_codes=[65])
assert asyncio.run(strategy.recover()) == 1.0
print("LEFT", len(task.resources))
"""


class ALostRun:
    """A run of two hours' work whose first attempt was preempted in us-east-1, in a folder."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        job = JobSpec.model_validate(
            {
                "name": "demo", "store": "s3://b", "data": {"from": "s3://b/rows.json"},
                "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": ["aws"], "workers": 1},
            }
        )  # fmt: skip
        self.folder, root = folder, Store.open(f"file://{folder}/store")
        self.store = root.child("demo-x3fkd")
        plan = LaunchPlan("demo-x3fkd", job, root.uri, (*SPOT, *FULL), 1, "0+test")
        self.store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
        training = asdict(Course(7200.0, 0.1, 300.0, 300.0, 300.0, 600.0, 0.2))
        stages = [{"name": "training", "course": training}]
        self.store.put_once("estimate.json", {"candidates": [{"stages": stages}]})
        session = put_session(self.store, Session(plan, RecoveryPolicy(**policy)))
        log = AttemptLog(self.store, LAYOUT)
        log.claim(1, {"placement": SPOT[0].to_json(), "started_at": utc_now()})
        log.put_base(1, None)
        log.put_end(1, {"stop_reason": "preempted", "ended_at": utc_now(), "seconds": 60.0})
        self.told = {"ALPACA_JOBS_STORE": root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": session}

    def recover(self, *, refusing: str = "", broken: str = "", lost: str = "") -> list[str]:
        """What was tried, in order: where and how, the attempt's number, its price an hour."""
        home = self.folder / "home"
        shutil.copytree(SNAPSHOT, home / ".sky" / "catalogs" / "v8")
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(self.told), refusing, broken, lost],
            capture_output=True, text=True, env=environ, timeout=110,
        )  # fmt: skip
        assert done.returncode == 0, (done.returncode, done.stderr)
        lines = done.stdout.splitlines()
        assert lines[-1] == "LEFT 4"  # the task is as it was, for the next time
        return [line.removeprefix("TRIED ") for line in lines if line.startswith("TRIED ")]

    def said(self) -> list[dict[str, Any]]:
        """What each start was said to be on demand for."""
        events = [event for event in read_events(self.store) if event.kind == "attempt"]
        return [dict(event.fields) for event in events if event.fields["state"] == "started"]


@pytest.mark.slow
def test_a_deadline_that_another_loss_would_cross_is_kept_on_demand(tmp_path: Path) -> None:
    run = ALostRun(tmp_path, on_demand="when-needed", deadline_at_s=time.time() + 2.3 * 3600)
    assert run.recover(refusing="us-east-2/on demand") == ["us-east-2/on demand 2 0.096", "us-east-1/on demand 2 0.096"]
    assert [one["place"] for one in run.said()] == ["aws/us-east-2", "aws/us-east-1"]
    assert all("are left until the deadline" in one["on_demand"] for one in run.said())


@pytest.mark.slow
def test_with_time_enough_it_is_spot_elsewhere_and_on_demand_at_last(tmp_path: Path) -> None:
    run = ALostRun(tmp_path, on_demand="when-needed", deadline_at_s=time.time() + 9 * 3600)
    assert run.recover(refusing="us-east-1/spot,us-east-2/spot") == [
        "us-east-2/spot 2 0.04", "us-east-1/spot 2 0.03", "us-east-2/on demand 2 0.096",
    ]  # fmt: skip
    assert [one["on_demand"] for one in run.said()] == ["", "", "no spot machine was to be had"]


@pytest.mark.slow
def test_a_machine_that_came_but_was_not_ready_is_an_attempt_that_failed_and_no_lack_of_capacity(
    tmp_path: Path,
) -> None:
    run = ALostRun(tmp_path)
    place = json.dumps(SPOT[1].to_json())
    run.told |= {"ALPACA_JOBS_ATTEMPT": "2", "ALPACA_JOBS_PLACEMENT": place}  # its set-up has ended with 65
    tried = run.recover(broken="set-up,us-east-2/spot")
    assert tried == ["us-east-2/spot 3 0.04", "us-east-1/spot 4 0.03"]
    ends = [record.end or {} for record in AttemptLog(run.store, LAYOUT).records()]
    assert [end["stop_reason"] for end in ends] == ["preempted", "crashed", "node_failure"]
    assert not [event for event in read_events(run.store) if event.fields.get("state") == "refused"]


@pytest.mark.slow
def test_a_machine_that_is_lost_at_work_before_skypilot_saw_its_task_begin_is_lost_and_no_lack_of_capacity(
    tmp_path: Path,
) -> None:
    run = ALostRun(tmp_path)
    assert run.recover(lost="us-east-2/spot") == ["us-east-2/spot 2 0.04", "us-east-1/spot 3 0.03"]
    ends = [record.end or {} for record in AttemptLog(run.store, LAYOUT).records()]
    assert [end["stop_reason"] for end in ends] == ["preempted", "lost"]
    assert ends[1]["placement"]["region"] == "us-east-2"
    assert not [event for event in read_events(run.store) if event.fields.get("state") == "refused"]
