"""Going on with a run on other machines than it was launched with: another number of them, or of GPUs in each.

control/machines-000001.json     put once by a `resume` that was given other machines; the newest counts

`job.json` stays as it was launched. What is in such a record stands in place of the job's `compute` and of the plan's
places, for nodes and for whoever looks at the run. Every step trains on the same rows whatever the number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from alpaca_jobs.spec_io import job_to_dict
from checkpoints.store import Store
from cluster.plan import LaunchPlan, Placement

_KEY: Final = re.compile(r"control/machines-(\d{6})\.json")


def put_machines(store: Store, plan: LaunchPlan) -> None:
    """Record the machines of a plan as those that a run goes on with.

    Raises:
        AlreadyExists: somebody else did so at the same moment.
    """
    whole = plan.to_json()
    number = max((int(match[1]) for match in _records(store)), default=0) + 1
    body = {name: whole[name] for name in ("candidates", "generation", "world_size")}
    store.put_once(f"control/machines-{number:06d}.json", {**body, "compute": job_to_dict(plan.job)["compute"]})


def with_newest_machines(store: Store, body: Mapping[str, Any]) -> dict[str, Any]:
    """What job.json says, with the machines of the newest such resume, if there was one.

    Raises:
        Damaged: its record is not as it was put.
    """
    records = _records(store)
    if not records:
        return dict(body)
    newest = store.get_record(max(match[0] for match in records))
    changed = {name: newest[name] for name in ("candidates", "generation", "world_size")}
    return {**body, **changed, "job": {**body["job"], "compute": newest["compute"]}}


def on_machines(plan: LaunchPlan, other: LaunchPlan) -> LaunchPlan:
    """A run's plan on the machines of another plan of its job."""
    job = plan.job.model_copy(update={"compute": other.job.compute})
    return replace(plan, job=job, candidates=other.candidates, generation=other.generation, world_size=other.world_size)


def with_all_places(store: Store, plan: LaunchPlan, launched: LaunchPlan) -> LaunchPlan:
    """The plan with every place that the run may have been in: those of its launch and of every resume elsewhere.

    Raises:
        Damaged: a record is not as it was put.
    """
    bodies = [store.get_record(match[0]) for match in _records(store)]
    earlier = [Placement.from_json(place) for body in bodies for place in (*body["candidates"], *body["generation"])]
    places = (*plan.candidates, *launched.candidates, *launched.generation, *earlier)
    return replace(plan, candidates=tuple(dict.fromkeys(places)))


def _records(store: Store) -> list[re.Match[str]]:
    return [match for key in store.list("control/") if (match := _KEY.fullmatch(key))]
