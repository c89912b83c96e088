"""A run on a cloud in a folder, and a SkyPilot that remembers what it was told: for the tests beside this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.cloud.run import CloudRun, put_session
from cluster.cloud.sky_backend import JobStatus
from cluster.errors import LaunchFailed
from cluster.events import utc_now
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.recovery import RecoveryPolicy
from cluster.runs.session import Session

PLACES = tuple(
    Placement("aws", region, None, "m6i.large", Pricing.SPOT, price, 1)
    for region, price in (("us-east-1", 0.03), ("us-east-2", 0.04), ("us-west-2", 0.05))
)


BODY = {
    "name": "demo", "store": "s3://b", "data": {"num_rows": 8, "teacher": "offline"},
    "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": ["aws"], "workers": 1},
    "secrets": ["API_KEY"],
}  # fmt: skip
WORKING = JobStatus(7, "RUNNING", False, "")


class ACloud:
    """A run in a folder, with as many attempts as a test gives it."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        job = JobSpec.model_validate(BODY)
        self.root = Store.open(f"file://{folder}")
        self.store = self.root.child("demo-x3fkd")
        plan = LaunchPlan("demo-x3fkd", job, self.root.uri, PLACES, 1, "0+test")
        self.store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
        self.session = Session(plan, RecoveryPolicy(**policy))
        self.log = AttemptLog(self.store, LAYOUT)

    def run(self, number: str = "", *, until: str = "") -> CloudRun:
        """As a controller that was just started sees it."""
        session = number or put_session(self.store, self.session)
        names = {"ALPACA_JOBS_STORE": self.root.uri, "ALPACA_JOBS_RUN": "demo-x3fkd", "ALPACA_JOBS_SESSION": session}
        return CloudRun.open({**names, "ALPACA_JOBS_UNTIL": until})

    def attempt(self, number: int, place: Placement, *, commit: int | None = None, reason: str | None = None) -> None:
        counting = counting_commits(self.log.records(), list_commits(self.store, LAYOUT), LAYOUT)
        self.log.claim(number, {"placement": place.to_json(), "started_at": utc_now()})
        self.log.put_base(number, counting[0] if counting else None)
        if commit is not None:
            CommitWriter(self.store, LAYOUT, CommitRef("train", commit, number)).publish(meta={})
        if reason is not None:
            self.log.put_end(number, {"stop_reason": reason, "ended_at": utc_now(), "seconds": 3600.0})


class FakeSky:
    """A SkyPilot that takes everything, and remembers."""

    def __init__(self, *statuses: JobStatus | None, plugin: bool = True, refuses: bool = False) -> None:
        self.statuses, self.plugin, self.refuses = list(statuses), plugin, refuses
        self.while_submitting: Callable[[], None] = lambda: None
        self.submitted: list[tuple[str, str, dict[str, str]]] = []
        self.cancelled: list[str] = []

    def has_plugin(self) -> bool:
        return self.plugin

    def submit(self, task_yaml: str, *, name: str, secrets: Any) -> int:
        self.while_submitting()
        if self.refuses:
            raise LaunchFailed("no")
        self.submitted.append((task_yaml, name, dict(secrets)))
        return 1

    def status(self, name: str) -> JobStatus | None:
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def cancel(self, name: str) -> JobStatus | None:
        self.cancelled.append(name)
        return self.status(name)
