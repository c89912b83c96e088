"""Going on with a run on other machines than it was launched with: another number of them, or of GPUs in each.

control/machines-000001.json     put once by a `resume` that was given other machines; the newest counts

`job.json` stays as it was launched. What is in such a record stands in place of the job's `compute` and of the plan's
places, for nodes and for whoever looks at the run. Every step trains on the same rows whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from alpaca_jobs.spec_io import job_to_dict
from checkpoints.store import Store
from cluster.numbered_records import put_next_record, record_keys
from cluster.plan import LaunchPlan, Placement

_KIND: Final = "machines"
_CHANGED: Final = ("candidates", "generation", "world_size")


def put_machines(store: Store, plan: LaunchPlan) -> None:
    """Record the machines of a plan as those that a run goes on with.

    Raises:
        AlreadyExists: somebody else did so at the same moment.
    """
    whole = plan.to_json()
    body = {name: whole[name] for name in _CHANGED}
    put_next_record(store, _KIND, {**body, "compute": job_to_dict(plan.job)["compute"]})


def with_newest_machines(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """What job.json says, with the machines of the newest such resume, if there was one.

    Raises:
        Damaged: its record is not as it was put.
    """
    keys = record_keys(store, _KIND)
    return _with_machines(body, store.get_record(keys[-1])) if keys else dict(body)


def on_machines(plan: LaunchPlan, other: LaunchPlan) -> LaunchPlan:
    """A run's plan on the machines of another plan of its job."""
    job = plan.job.model_copy(update={"compute": other.job.compute})
    return replace(plan, job=job, candidates=other.candidates, generation=other.generation, world_size=other.world_size)


def with_all_places(store: Store, body: Mapping[str, Any]) -> LaunchPlan:
    """The plan that a run goes on with now, with every place that it may have been in: those of its launch, by what
    job.json says, and of every resume elsewhere.

    Raises:
        Damaged: a record is not as it was put.
    """
    launched = LaunchPlan.from_json(body)
    records = [store.get_record(key) for key in record_keys(store, _KIND)]
    plan = LaunchPlan.from_json(_with_machines(body, records[-1])) if records else launched
    earlier = [Placement.from_json(place) for one in records for place in (*one["candidates"], *one["generation"])]
    places = (*plan.candidates, *launched.candidates, *launched.generation, *earlier)
    return replace(plan, candidates=tuple(dict.fromkeys(places)))


def _with_machines(body: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    changed = {name: record[name] for name in _CHANGED}
    return {**body, **changed, "job": {**body["job"], "compute": record["compute"]}}
