"""What was launched, as a run's store keeps it: job.json, put once at launch."""

from __future__ import annotations

from typing import Any, Final

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import stored_job
from checkpoints.store import PUT_BACK, Store
from cluster.other_machines import with_newest_machines

JOB_KEY: Final = "job.json"


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
    return stored_job(with_newest_machines(store, read_job_record(store))["job"], source=JOB_KEY)
