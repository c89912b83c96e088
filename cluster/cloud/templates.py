"""Filling the task template of sky/ from a LaunchPlan: the YAML that SkyPilot takes, as text. Pure but for one read.

No secret is in it: secrets stand there by name, with `null`, and get their values when the task is handed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Final

from cluster.errors import BackendMissing
from cluster.exits import NODE_EXITS
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.recovery import TABLE, Action, StopReason

DISK_GIB: Final = 100  # the node environment takes 6 GB on a GPU machine, a 7B model and its exported copy 28 GB
STRATEGY: Final = "alpaca_jobs"  # the name under which cluster/cloud/sky_plugin.py registers
_PACKAGED = Path(__file__).parents[1] / "_templates"
_CHECKOUT = Path(__file__).resolve().parents[2] / "sky"
_STORE_EXTRAS: Final = {"gs": "gcs", "az": "azure", "abfs": "azure"}


@dataclass(frozen=True)
class TaskSettings:
    """What a task needs besides its plan.

    Attributes:
        session: number of the session in the store (cluster/cloud/cloud_run.py).
        code_folder: folder of this machine with the wheel and constraints.txt.
        has_plugin: whether SkyPilot's server has our strategy; without it the task says nothing of it.
        time_limit_s: hard limit for one attempt, in seconds; None for none.
    """

    session: str
    code_folder: str
    has_plugin: bool
    time_limit_s: float | None = None


def render_task(plan: LaunchPlan, settings: TaskSettings) -> str:
    """The task's YAML.

    Raises:
        BackendMissing: the plan asks for what a cloud's node cannot do yet.
    """
    check_renderable(plan)
    scheme = plan.store_uri.partition("://")[0]
    limit = "infinity" if settings.time_limit_s is None else str(math.ceil(settings.time_limit_s))
    text = (_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT).joinpath("run.yaml").read_text(encoding="utf-8")
    return Template(text).substitute(
        run_id=plan.run_id,
        disk_gib=DISK_GIB,
        job_recovery="\n".join(f"    {line}" for line in _job_recovery(settings.has_plugin)),
        candidates="\n".join(f"    - {_candidate(place)}" for place in task_places(plan.candidates)),
        code_folder=json.dumps(settings.code_folder),
        store_uri=json.dumps(plan.store_uri),
        session=settings.session,
        secrets="{" + ", ".join(f"{name}: null" for name in plan.job.secrets) + "}",
        extras=",".join(["node", *([_STORE_EXTRAS[scheme]] if scheme in _STORE_EXTRAS else [])]),
        time_limit=limit,
    )


def check_renderable(plan: LaunchPlan) -> None:
    """Refuse what this version's nodes do not do on a cloud.

    Raises:
        BackendMissing: says what it is.
    """
    if plan.candidates[0].gpus is not None:
        raise BackendMissing(
            f"The plan is for {plan.candidates[0].gpus} on {plan.candidates[0].infra}, but this version's nodes train "
            "on CPUs only. Set gpus: null and workers: N to run it on CPU machines."
        )
    if plan.num_nodes > 1:
        raise BackendMissing(
            f"The plan is for {plan.num_nodes} machines that work together, but this version runs a job on one machine "
            "only. Set num_nodes: 1."
        )
    if plan.store_uri == "auto":
        raise BackendMissing(
            "store: auto does not make a bucket yet. Make one near the compute and name it: store: s3://my-bucket/runs"
        )


def task_places(candidates: Iterable[Placement]) -> list[Placement]:
    """The plan's places as SkyPilot can be told them, in order: one for each region, because zones are its own choice.

    The price stays that of the cheapest zone, which SkyPilot tries first as well.
    """
    seen: dict[tuple[str, ...], Placement] = {}
    for place in candidates:
        seen.setdefault((place.infra, place.region, place.instance_type, place.pricing), replace(place, zone=None))
    return list(seen.values())


def _candidate(place: Placement) -> str:
    spot = "true" if place.pricing is Pricing.SPOT else "false"
    return f"{{infra: {place.infra}/{place.region}, instance_type: {place.instance_type}, use_spot: {spot}}}"


def _job_recovery(has_plugin: bool) -> list[str]:
    """Our strategy is asked after every stop that another start may cure; SkyPilot's own only after a preemption.

    Restarts that an exit code asks for have no limit in SkyPilot; counting crashes is our strategy's business. A node
    says `superseded` also where it could not renew its lease, which a start elsewhere cures.
    """
    if not has_plugin:
        codes = [NODE_EXITS[one] for one in (StopReason.PREEMPTED, StopReason.NODE_FAILURE, StopReason.SUPERSEDED)]
        return ["strategy: EAGER_NEXT_REGION", f"recover_on_exit_codes: {codes}"]
    curable = {reason for reason, rule in TABLE.items() if rule.action is Action.RELAUNCH}
    codes = sorted(code for reason, code in NODE_EXITS.items() if reason in curable | {StopReason.SUPERSEDED})
    return [f"strategy: {STRATEGY}", f"recover_on_exit_codes: {codes}"]
