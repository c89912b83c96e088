"""Filling the task template of sky/ from a LaunchPlan: the YAML that SkyPilot takes, as text. Pure but for one read.

A plan of several parts (rows on small machines, then training on GPUs) makes a chain: SkyPilot starts a task when the
one before it ended with exit code 0, and takes the machines of each down when it ends. No secret is in the text:
secrets stand there by name, with `null`, and get their values when the tasks are handed over.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from alpaca_jobs.known_models import parameters_by_name
from alpaca_jobs.spec import TeacherSpec
from alpaca_jobs.spec_compute import OWN_INFRA
from cluster.cloud.places import render_place, task_places
from cluster.errors import BackendMissing
from cluster.exits import NODE_EXITS, SET_UP_FAILED
from cluster.node.command_process import COMMAND_ENVIRONMENT
from cluster.node.power import SETUP_MIN
from cluster.plan import LaunchPlan, Placement, PlanPart
from cluster.recovery import TABLE, Action, StopReason

STRATEGY: Final = "alpaca_jobs"  # the name under which cluster/cloud/sky_plugin.py registers
RAY_TOKEN: Final = "RAY_AUTH_TOKEN"
"""Secret of a run whose machines work together: what keeps others out of their Ray. Minted for each launch."""
DISK_GIB: Final = 100  # the node environment takes 6 GB on a GPU machine, a 7B model and its exported copy 28 GB
_DISK_GIB_BESIDE_MODEL: Final = 60
_DISK_BYTES_FETCHED: Final = 2  # a parameter of the base model, where its files were not looked at
_DISK_BYTES_EXPORTED: Final = 4  # 2, and as much again while it is written
_SERVER_GIB: Final = 20  # vLLM with its own torch and CUDA
_DISK_BYTES_PER_SERVED_PARAMETER: Final = 2
WITHOUT_PLUGIN: Final = (StopReason.PREEMPTED, StopReason.NODE_FAILURE, StopReason.SUPERSEDED)
"""Stops after which SkyPilot's own strategy starts another machine. Others end its job."""
LONGEST_S: Final = 7 * 86_400
"""Most seconds of one attempt where the job has no deadline: longer than any training that this is made for, so that
what hangs does not bill for ever; a run that needs longer loses at most one checkpoint interval and a set-up a week."""
_LEAST_S: Final = 120
_POWER: Final = f"""\
  # Rented by the hour: unless a node puts that off (cluster/node/power.py), it turns itself off in {SETUP_MIN} minutes.
  $([ "$(id -u)" = 0 ] || echo sudo -n) shutdown -h +{SETUP_MIN} >/dev/null 2>&1 || true
"""
_PACKAGED = Path(__file__).parents[1] / "_templates"
_CHECKOUT = Path(__file__).resolve().parents[2] / "sky"
_STORE_EXTRAS: Final = {"gs": "gcs", "az": "azure", "abfs": "azure"}


@dataclass(frozen=True)
class TaskSettings:
    """What a task needs besides its plan.

    Attributes:
        session: number of the session in the store (cluster/cloud/run.py).
        code_folder: folder of this machine with the wheel and constraints.txt.
        has_plugin: whether SkyPilot's server has our strategy; without it the task says nothing of it.
        end_at_s: when an attempt is ended from outside, whichever it is and however late it began; seconds since 1970.
            None: LONGEST_S after its start.
    """

    session: str
    code_folder: str
    has_plugin: bool
    end_at_s: float | None = None


def render_tasks(plan: LaunchPlan, settings: TaskSettings, parts: Sequence[PlanPart] | None = None) -> str:
    """The YAML of one task, or of a chain of them.

    Args:
        parts: those that are left to do; None for all of the plan's.

    Raises:
        BackendMissing: the plan asks for what a cloud's node cannot do yet.
    """
    check_renderable(plan)
    parts = plan.parts if parts is None else parts
    if len(parts) == 1:
        return _render_part(plan, settings, parts[0], name=plan.run_id)
    tasks = [_render_part(plan, settings, part, name=f"{plan.run_id}-{part.name}") for part in parts]
    return "\n---\n".join([f"name: {plan.run_id}", *tasks])


def secret_names(plan: LaunchPlan) -> tuple[str, ...]:
    """Secrets of a plan's tasks by name: the job's own, and the token of machines that work together."""
    together = any(place.num_nodes > 1 for part in plan.parts for place in part.candidates)
    return (*plan.job.secrets, *((RAY_TOKEN,) if together else ()))


def check_renderable(plan: LaunchPlan) -> None:
    """Refuse what this version's nodes do not do on a cloud.

    Raises:
        BackendMissing: says what it is.
    """
    if plan.store_uri == "auto":
        raise BackendMissing(
            "store: auto does not make a bucket yet. Make one near the compute and name it: store: s3://my-bucket/runs"
        )


def _render_part(plan: LaunchPlan, settings: TaskSettings, part: PlanPart, *, name: str) -> str:
    scheme = plan.store_uri.partition("://")[0]
    places = task_places(part.candidates)
    num_nodes = places[0].num_nodes
    text = (_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT).joinpath("run.yaml").read_text(encoding="utf-8")
    return Template(text).substitute(
        run_id=plan.run_id,
        name=name,
        what=_what(plan, part),
        num_nodes=f"num_nodes: {num_nodes}\n\n" if num_nodes > 1 else "",
        disk=_disk(plan, part, places[0]),
        job_recovery="\n".join(f"    {line}" for line in _job_recovery(settings.has_plugin)),
        candidates="\n".join(f"    - {render_place(place)}" for place in places),
        code_folder=json.dumps(settings.code_folder),
        store_uri=json.dumps(plan.store_uri),
        session=settings.session,
        until=json.dumps(part.until or ""),
        secrets="{" + ", ".join(f"{secret}: null" for secret in secret_names(plan)) + "}",
        extras=",".join(["node", *plan.job.train.track, *([_STORE_EXTRAS[scheme]] if scheme in _STORE_EXTRAS else [])]),
        server=_server(plan, part) + _command(plan, part),
        image="" if plan.job.compute.image is None else f"  image_id: {json.dumps(plan.job.compute.image)}\n",
        rented='""' if places[0].infra in OWN_INFRA else '"yes"',
        power="" if places[0].infra in OWN_INFRA else _POWER,
        time_left=_time_left(settings.end_at_s),
    )


def _time_left(end_at_s: float | None) -> str:
    """Seconds for `timeout`, as the machine's shell works them out when an attempt begins there."""
    if end_at_s is None:
        return f"{LONGEST_S}  # no deadline: a healthy run goes on elsewhere from its newest commit, a hanging one ends"
    at = math.ceil(end_at_s)
    words = "# a minute or two in which it can say its end"
    return f'$(( {at} - $(date +%s) )); [ "$left" -gt {_LEAST_S} ] || left={_LEAST_S}  {words}'


def _what(plan: LaunchPlan, part: PlanPart) -> str:
    place = part.candidates[0]
    where = f"{place.num_nodes} machines that work together" if place.num_nodes > 1 else "one machine"
    if part.until == "generate":
        return f"The rows of a run, written on {where}"
    return f"{'What follows the rows' if len(plan.parts) > 1 else 'A whole run'} on {where}"


def _server(plan: LaunchPlan, part: PlanPart) -> str:
    """Lines of the set-up that install what serves the job's own teacher, where rows are written; none otherwise.

    In an environment of its own: its torch is another than ours.
    """
    teacher = plan.job.data.teacher
    if not isinstance(teacher, TeacherSpec) or teacher.serve is None:
        return ""
    if "generate" not in plan.job.stages or (part.until != "generate" and len(plan.parts) > 1):
        return ""
    return _environment("alpaca-jobs-vllm", shlex.quote(teacher.server.install), "serves data.teacher.serve")


def _command(plan: LaunchPlan, part: PlanPart) -> str:
    """Lines of the set-up that install what the user's own training program needs, where it runs; none otherwise.

    Without our constraints: its versions are its own, and resolved together with our base package.
    """
    packages = plan.job.train.install
    if not packages or part.until == "generate":
        return ""
    scheme = plan.store_uri.partition("://")[0]
    extra = f"[{_STORE_EXTRAS[scheme]}]" if scheme in _STORE_EXTRAS else ""
    ours = f'"$(ls ~/alpaca-jobs-code/*.whl){extra}"'
    return _environment(COMMAND_ENVIRONMENT, f"{ours} {shlex.join(packages)}", "for train.command")


def _environment(name: str, packages: str, what_for: str) -> str:
    """Lines of the set-up that make an environment beside ours; `packages` as the shell reads them."""
    return (
        f'\n  [ -x ~/{name}/bin/python ] || patiently "$uv" venv --quiet --python 3.11 ~/{name}'
        f'\n  VIRTUAL_ENV="$HOME/{name}" patiently "$uv" pip install --quiet {packages}  # {what_for}'
    )


def _disk(plan: LaunchPlan, part: PlanPart, place: Placement) -> str:
    """The line that asks for a disk; none for machines of the user's own, which have the disks they have."""
    if place.infra in OWN_INFRA:
        return ""
    job, model = plan.job, 0.0
    if part.until != "generate":
        size = plan.num_parameters or parameters_by_name(job.train.model) or 0
        fetched = _DISK_BYTES_FETCHED * size if plan.base_bytes is None else plan.base_bytes
        model = (fetched + size * _DISK_BYTES_EXPORTED) / 2**30
    if part.until == "generate" and isinstance(job.data.teacher, TeacherSpec) and job.data.teacher.serve is not None:
        size = parameters_by_name(job.data.teacher.serve) or 0
        model = _SERVER_GIB + size * _DISK_BYTES_PER_SERVED_PARAMETER / 2**30
    return f"  disk_size: {max(DISK_GIB, math.ceil(_DISK_GIB_BESIDE_MODEL + model))}\n"


def _job_recovery(has_plugin: bool) -> list[str]:
    """Our strategy is asked after every stop that another start may cure; SkyPilot's own only after a preemption.

    Restarts that an exit code asks for have no limit in SkyPilot; counting crashes is our strategy's business. A node
    says `superseded` also where it could not renew its lease, which a start elsewhere cures. Where nothing is to
    follow, it leaves with another code (cluster/cloud/node.py).
    """
    if not has_plugin:
        codes = [NODE_EXITS[one] for one in WITHOUT_PLUGIN]
        return ["strategy: EAGER_NEXT_REGION", f"recover_on_exit_codes: {codes}"]
    curable = {reason for reason, rule in TABLE.items() if rule.action is Action.RELAUNCH}
    codes = [code for reason, code in NODE_EXITS.items() if reason in curable | {StopReason.SUPERSEDED}]
    return [f"strategy: {STRATEGY}", f"recover_on_exit_codes: {sorted([*codes, SET_UP_FAILED])}"]
