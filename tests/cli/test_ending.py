"""What an interrupted drill does with a run on a cloud: it bills until somebody ends it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cli.ending import end_runs
from cluster.cloud.run import put_session
from cluster.cloud.sky_backend import JobStatus
from cluster.errors import ClusterError
from cluster.events import utc_now
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.recovery import RecoveryPolicy
from cluster.runs.home import Home
from cluster.runs.run_view import index_key, view_run
from cluster.runs.session import Session

RUN = "demo-x3fkd"
PLACE = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 1)


class OneJob:
    """A SkyPilot that works on one job, until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def has_plugin(self) -> bool:
        return True

    def submit(self, task_yaml: str, *, name: str, secrets: Mapping[str, str]) -> int:
        raise AssertionError("nothing is submitted here")

    def status(self, name: str) -> JobStatus | None:
        return JobStatus(7, "CANCELLED" if self.cancelled else "RUNNING", bool(self.cancelled), "")

    def cancel(self, name: str) -> JobStatus | None:
        before = self.status(name)
        self.cancelled.append(name)
        return before


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of a run on a cloud that was launched from here; its last attempt has just ended."""
    monkeypatch.setenv("ALPACA_JOBS_HOME", str(tmp_path / "home"))
    root = Store.open(f"file://{tmp_path}/runs")
    body = {
        "name": "demo", "store": "s3://b", "data": {"num_rows": 8, "teacher": "offline"},
        "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": ["aws"], "workers": 1},
    }  # fmt: skip
    plan = LaunchPlan(RUN, JobSpec.model_validate(body), root.uri, (PLACE,), 1, "0+test")
    store = root.child(RUN)
    store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
    root.put_once(index_key(RUN), {"job_name": "demo", "launched_at": utc_now()})
    put_session(store, Session(plan, RecoveryPolicy()))
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": PLACE.to_json(), "started_at": utc_now()})
    log.put_end(1, {"stop_reason": "preempted", "ended_at": utc_now(), "seconds": 60.0})
    Home.default().remember_store(root.uri)
    return root


def test_a_run_on_a_cloud_is_cancelled_and_what_was_done_is_said(
    root: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    sky = OneJob()
    end_runs([RUN], jobs=sky)
    said = capsys.readouterr().err
    assert sky.cancelled == [RUN]
    assert "SkyPilot was told to end job 7 and to take its machine down" in said
    assert f"alpaca-jobs rm {RUN}" in said
    assert view_run(root, RUN).exit_code == 130
    end_runs([RUN], jobs=sky)  # it is over: nothing happens to its end
    assert "had stopped before: Cancelled" in capsys.readouterr().err


def test_a_run_that_cannot_be_stopped_keeps_no_other_one_running(
    root: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    class Silent(OneJob):
        def cancel(self, name: str) -> JobStatus | None:
            super().cancel(name)
            raise ClusterError("SkyPilot's API server does not answer.")

    sky = Silent()
    end_runs([RUN, "demo-x3fkp", RUN], jobs=sky)
    said = capsys.readouterr().err
    assert sky.cancelled == [RUN, RUN]
    assert said.count(f"{RUN} could not be stopped: SkyPilot's API server does not answer.") == 2


def test_a_run_that_is_done_or_was_never_launched_is_named_so(root: Store, capsys: pytest.CaptureFixture[str]) -> None:
    AttemptLog(root.child(RUN), LAYOUT).claim(2, {"placement": PLACE.to_json(), "started_at": utc_now()})
    AttemptLog(root.child(RUN), LAYOUT).put_end(2, {"stop_reason": "done", "ended_at": utc_now(), "seconds": 60.0})
    sky = OneJob()
    end_runs([RUN, "demo-x3fkp"], jobs=sky)
    said = capsys.readouterr().err
    assert sky.cancelled == []
    assert f"{RUN} was done already" in said
    assert "Interrupted before demo-x3fkp was launched" in said
