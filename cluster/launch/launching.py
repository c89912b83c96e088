"""Starting and resuming runs: what the commands call.

Every run has a supervisor of its own, detached from the terminal at once; a command that stays only follows.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists
from checkpoints.store import Store
from cluster.backend import NODE_COMMAND
from cluster.cloud.launching import Jobs, refuse_active_job, submit_session
from cluster.cloud.limit_watch import leaving_s
from cluster.cloud.run import parts_left
from cluster.cloud.sky_backend import SkyJobs
from cluster.cloud.templates import check_renderable
from cluster.code_version import code_version
from cluster.control import answer_cancels
from cluster.errors import RunActive, WrongInput
from cluster.events import seconds_of, utc_now
from cluster.job_record import ESTIMATE_KEY, JOB_KEY
from cluster.launch.alive import refuse_active, refuse_finished, still_alive
from cluster.launch.stopping import erase_run
from cluster.local.backend import LocalBackend
from cluster.local.detaching import start_supervisor
from cluster.node.inputs import freeze_inputs
from cluster.node.limits import put_limits
from cluster.node.review import accept_rows
from cluster.other_machines import on_machines, put_machines
from cluster.plan import LaunchPlan, Placement, PlanPart
from cluster.recovery import RecoveryPolicy, StopReason
from cluster.runs.home import Home
from cluster.runs.report import read_report
from cluster.runs.run_view import index_key, list_runs, read_plan
from cluster.runs.session import DEFAULT_TIMING, Session, Timing

if TYPE_CHECKING:
    from alpaca_jobs.training.base_look import Look

logger = logging.getLogger(__name__)


def start_run(
    plan: LaunchPlan,
    home: Home,
    *,
    timing: Timing = DEFAULT_TIMING,
    node_command: Sequence[str] = NODE_COMMAND,
    environ: Mapping[str, str] = os.environ,
    estimate: Mapping[str, Any] | None = None,
    jobs: Jobs | None = None,
    look: Look | None = None,
) -> str:
    """Start a run and return its id; it goes on whatever becomes of the caller. Watch it with `follow_run`.

    Nothing is left behind if it cannot be started: not in the store, not here.

    Args:
        estimate: what it is expected to cost (`JobEstimate.to_json`), kept for the receipt; None for no estimate.
        jobs: SkyPilot's managed jobs, for a run on a cloud; None for those of this machine's API server.
        look: what was found of its base model when it was planned; None to look at it now.

    Raises:
        WrongInput: a secret that the job lists is not set.
        ModelError: its base model is not there, or cannot be trained.
        DataError: an input of the job is missing or not what it should be.
        BackendMissing: the plan is for an infra that this version cannot launch on.
        StoreError: the store cannot be used, or put-once does not hold there.
        LaunchFailed: the supervisor did not start.
    """
    _check_launchable(plan.job, plan, environ)
    plan = _pinned(plan, look)
    root = Store.open(plan.store_uri)
    plan = replace(plan, store_uri=root.uri)  # absolute: nodes may stand elsewhere
    store = root.child(plan.run_id)
    store.probe_put_once()
    folder = home.run(plan.run_id)
    launched_at = utc_now()
    try:
        store.put_once(JOB_KEY, {**plan.to_json(), "launched_at": launched_at})
    except AlreadyExists as exc:
        raise RunActive(f"{store.uri} holds a run already. Launch again: it gets another id.") from exc
    # Before anything can cost money: whoever dies while SkyPilot takes the job finds the run again, to cancel it.
    was_known = root.uri in home.stores()
    home.remember_store(root.uri)
    try:
        freeze_inputs(plan.job, store)
        if estimate is not None:
            store.put_once(ESTIMATE_KEY, estimate)
        root.put_once(index_key(plan.run_id), {"job_name": plan.job.name, "launched_at": launched_at})
        policy = policy_for(plan, timing, launched_at_s=seconds_of(launched_at))
        session = Session(plan, policy, timing, tuple(node_command))
        if plan.is_local:
            start_supervisor(folder, session, home, environ)
        else:
            submit_session(store, session, home, jobs or SkyJobs(), environ)
    except BaseException:  # Ctrl-C included: a launch either stands or never was
        erase_run(root, folder)
        if not was_known and not list_runs(root):
            home.forget_store(root.uri)
        raise
    return plan.run_id


def resume_run(
    root: Store,
    run_id: str,
    home: Home,
    *,
    exclude_regions: Collection[str] = (),
    max_usd: float | None = None,
    teacher_max_usd: float | None = None,
    deadline_h: float | None = None,
    machines: LaunchPlan | None = None,
    timing: Timing = DEFAULT_TIMING,
    node_command: Sequence[str] = NODE_COMMAND,
    environ: Mapping[str, str] = os.environ,
    jobs: Jobs | None = None,
) -> str:
    """Go on with a run that ended or whose supervisor died, from its newest commit; returns its id.

    A node of this machine that still works is adopted, unless its region is excluded. Where the run waits for a review
    of its rows, this accepts them, and the time it has waited does not count for the deadline.

    Args:
        exclude_regions: where it may not go this time: `b`, or `local/b`.
        max_usd: replaces the job's limit; counts everything spent since the launch.
        teacher_max_usd: the same for the teacher's own limit.
        deadline_h: replaces the job's limit; hours from now.
        machines: a plan of the same job for other machines, which this and every later start of the run then uses.
        jobs: as for `start_run`.

    Raises:
        RunNotFound, RunFinished, RunActive: there is nothing to resume.
        WrongInput: every region is excluded, or a secret is not set.
    """
    plan, launched_at = read_plan(root, run_id)
    store = root.child(run_id)
    if machines is not None:
        plan = on_machines(plan, machines)
    whole = replace(plan, store_uri=root.uri)
    plan = _without(whole, parts_left(store, plan), exclude_regions)
    _check_launchable(plan.job, plan, environ)
    # Of two at once, one goes on, and the other changes nothing; SkyPilot sees to that in a cloud.
    with home.run(run_id).starting() if plan.is_local else nullcontext():
        log = AttemptLog(store, LAYOUT)
        if not plan.is_local:
            refuse_active_job(run_id, (jobs or SkyJobs()).status(run_id))
        if read_report(store) is not None:  # a node that outlived its supervisor may be done, and nobody reported it
            refuse_finished(log, run_id)
        refuse_active(log, run_id, home, timing, what="resume it")
        if machines is not None and LocalBackend(home).find(run_id):
            raise still_alive(run_id, "resume it on other machines", "a node on this machine still works on it")
        if (now := code_version()) != plan.code_version:
            logger.warning(
                "%s was launched by code %s and goes on with %s: rows and steps stay right, but bits may differ",
                run_id, plan.code_version, now,
            )  # fmt: skip
        store.probe_put_once()
        answer_cancels(store)
        waited_s = _accept_reviewed(store, log)
        policy = policy_for(plan, timing, launched_at_s=seconds_of(launched_at) + waited_s)
        if max_usd is not None:
            policy = replace(policy, max_usd=max_usd)
        if deadline_h is not None:
            policy = replace(policy, deadline_at_s=time.time() + 3600 * deadline_h)
        if machines is not None:
            put_machines(store, whole)
        put_limits(store, max_usd=max_usd, teacher_max_usd=teacher_max_usd)
        session = Session(plan, policy, timing, tuple(node_command))
        home.remember_store(root.uri)
        if plan.is_local:
            start_supervisor(home.run(run_id), session, home, environ)
        else:
            submit_session(store, session, home, jobs or SkyJobs(), environ)
    return run_id


def _accept_reviewed(store: Store, log: AttemptLog) -> float:
    """Accept the rows of a run that stopped for a review; returns the seconds it has waited, 0 for any other run."""
    records = log.records()
    end = (records[-1].end if records else None) or {}
    if end.get("stop_reason") != StopReason.REVIEW.value:
        return 0.0
    accept_rows(store, {"accepted_at": utc_now()})
    return max(time.time() - seconds_of(end["ended_at"]), 0.0) if end.get("ended_at") else 0.0


def policy_for(plan: LaunchPlan, timing: Timing, *, launched_at_s: float) -> RecoveryPolicy:
    """Turn a job's limits into the policy of its recoveries; the deadline is in seconds since 1970."""
    job = plan.job
    hours = job.limits.deadline_h
    has_spot = not job.compute.is_local and not job.compute.is_own  # elsewhere the word means nothing
    spot = job.compute.spot_policy if has_spot else None
    return RecoveryPolicy(
        recover=job.compute.recover,
        on_demand="never" if spot is None else spot.on_demand,
        max_crashes=job.compute.max_crashes,
        max_wait_s=job.compute.max_wait_s,
        max_usd=job.limits.max_usd,
        deadline_at_s=None if hours is None else launched_at_s + 3600 * hours,
        restart_s=timing.restart_s if job.compute.is_local else max(timing.restart_s, leaving_s(plan)),
        first_backoff_s=timing.first_backoff_s,
    )


def _pinned(plan: LaunchPlan, look: Look | None) -> LaunchPlan:
    """The plan with the base model's commit in its job, as far as it can be found out here."""
    from alpaca_jobs.training.base_look import look_at_base
    from alpaca_jobs.training.pinning import Pinned, pin_revision

    train = plan.job.train
    if train.method == "command" and "/" not in train.model:
        return plan  # a word that its own program understands
    told = look_at_base(plan.job) if look is None else look
    if told.base is not None and told.base.revision is not None:
        found = Pinned(told.base.revision)
    else:
        found = pin_revision(train.model, train.revision, asks=False)
    for words in (*(told.words if look is None else ()), *([found.words] if found.words else ())):
        logger.warning("%s", words)
    job = plan.job.model_copy(update={"train": train.model_copy(update={"revision": found.revision})})
    return replace(plan, job=job)


def _check_launchable(job: JobSpec, plan: LaunchPlan, environ: Mapping[str, str]) -> None:
    if not plan.is_local:
        check_renderable(plan)
        SkyJobs()  # says in words where SkyPilot is not installed
    if plan.store_uri.startswith("memory://"):
        raise WrongInput(
            f"The store is {plan.store_uri}, which lives and dies with one process; a run has several. Use a folder, "
            "such as file://./runs."
        )
    missing = [name for name in job.secrets if not environ.get(name)]
    if missing:
        raise WrongInput(
            f"The job lists the secret{'s' if len(missing) > 1 else ''} {', '.join(missing)}, not set in this shell. "
            f"Set them first: export {missing[0]}=..., or take them out of `secrets`."
        )


def _without(plan: LaunchPlan, left: Sequence[PlanPart], excluded: Collection[str]) -> LaunchPlan:
    """The plan without some regions, for the machines of every part that is left to do.

    Raises:
        WrongInput: one is no region of the plan, or a part would have none.
    """
    places = (*plan.generation, *plan.candidates)
    known = {place.region for place in places} | {place.name for place in places}
    if unknown := sorted(set(excluded) - known):
        raise WrongInput(
            f"{', '.join(unknown)} is no region of {plan.run_id}; those are "
            f"{', '.join(dict.fromkeys(place.name for place in places))}."
        )

    def allowed(some: Sequence[Placement]) -> tuple[Placement, ...]:
        return tuple(one for one in some if one.region not in excluded and one.name not in excluded)

    for part in left:
        if not allowed(part.candidates):
            whose = f" for its {part.name}" if len(left) > 1 else ""
            names = ", ".join(dict.fromkeys(place.name for place in part.candidates))
            raise WrongInput(f"Every region of {plan.run_id}{whose} is excluded ({names}). Exclude fewer.")
    # A part that is done needs no machine: its places stay as they are, so that the plan keeps its parts.
    return replace(
        plan,
        candidates=allowed(plan.candidates) or plan.candidates,
        generation=allowed(plan.generation) or plan.generation,
    )
