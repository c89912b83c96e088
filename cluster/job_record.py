"""What was launched, as a run's store keeps it: job.json, and what it was expected to take. Each put once at launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import stored_job
from checkpoints.errors import ObjectMissing
from checkpoints.store import PUT_BACK, Store
from cluster.other_machines import with_newest_machines

JOB_KEY: Final = "job.json"
ESTIMATE_KEY: Final = "estimate.json"


def read_job_record(store: Store) -> dict[str, Any]:
    """Read a run's job.json: its plan, and when it was launched.

    Raises:
        ObjectMissing: there is none, so there is no such run.
        Damaged: it is not as it was put.
    """
    return store.get_record(JOB_KEY, advice=f"It says what the run is, so the run cannot go on without it. {PUT_BACK}")


def read_job(store: Store) -> JobSpec:
    """Read the job of a run, with the machines it goes on with now; raises what `read_job_record` does, and SpecError
    for a job of another version.
    """
    return job_of(read_job_record(store), store)


def job_of(body: Mapping[str, Any], store: Store) -> JobSpec:
    """The same of what job.json says. Raises as `read_job`."""
    return stored_job(with_newest_machines(store, body)["job"], source=JOB_KEY)


def read_estimate(store: Store) -> Mapping[str, Any] | None:
    """Read the estimate that was made at launch, with the courses of its stages; None without a whole one."""
    try:
        return store.get_record_if_whole(ESTIMATE_KEY, advice="Going on without an estimate.")
    except ObjectMissing:
        return None
