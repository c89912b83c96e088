"""Starting, resuming, cancelling, removing and following runs: what the commands call.

Every run has a supervisor of its own, detached from the terminal at once; a command that stays only follows.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import psutil

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, StorePermission
from checkpoints.store import Store
from cluster.backend import NODE_COMMAND
from cluster.cloud.launching import Jobs, JobWatch, cancel_cloud_run, refuse_active_job, submit_session
from cluster.cloud.limit_watch import leaving_s
from cluster.cloud.run import parts_left
from cluster.cloud.sky_backend import SkyJobs
from cluster.cloud.templates import check_renderable
from cluster.code_version import code_version
from cluster.control import answer_cancels, ask_cancel
from cluster.errors import ClusterError, LaunchFailed, RunActive, RunFinished, WrongInput
from cluster.events import Event, EventReader, read_events, seconds_of, utc_now
from cluster.exits import Notice
from cluster.job_record import JOB_KEY
from cluster.local.backend import LocalBackend
from cluster.node.hard_end import AFTER_WINDOW_S
from cluster.node.inputs import freeze_inputs
from cluster.node.leave_time import NEWEST_BATCHES, LeaveTime, expected_save_s
from cluster.node.limits import put_limits
from cluster.node.review import accept_rows
from cluster.other_machines import on_machines, put_machines
from cluster.plan import LaunchPlan, Placement, PlanPart
from cluster.process_tree import NODE_MARK, is_alive, kill_marked
from cluster.recovery import RecoveryPolicy, StopReason
from cluster.runs.home import Home, RunFolder, read_json, write_json
from cluster.runs.outlook import ESTIMATE_KEY
from cluster.runs.report import read_report
from cluster.runs.run_view import index_key, is_lease_moving, list_runs, read_plan
from cluster.runs.session import Session, Timing

logger = logging.getLogger(__name__)

DEFAULT_TIMING = Timing()
_SUPERVISOR_START_S = 60.0
# Forks once more and leads a session of its own, so that the supervisor is nobody's child and no terminal's.
_DETACH = """
import os, sys
if pid := os.fork():
    print(pid)
    sys.stdout.flush()
    os._exit(0)
os.dup2(2, 1)
os.setsid()
os.execv(sys.argv[1], sys.argv[1:])
"""


def start_run(
    plan: LaunchPlan,
    home: Home,
    *,
    timing: Timing = DEFAULT_TIMING,
    node_command: Sequence[str] = NODE_COMMAND,
    environ: Mapping[str, str] = os.environ,
    estimate: Mapping[str, Any] | None = None,
    jobs: Jobs | None = None,
) -> str:
    """Start a run and return its id; it goes on whatever becomes of the caller. Watch it with `follow_run`.

    Nothing is left behind if it cannot be started: not in the store, not here.

    Args:
        estimate: what it is expected to cost (`JobEstimate.to_json`), kept for the receipt; None for no estimate.
        jobs: SkyPilot's managed jobs, for a run on a cloud; None for those of this machine's API server.

    Raises:
        WrongInput: a secret that the job lists is not set.
        DataError: an input of the job is missing or not what it should be.
        BackendMissing: the plan is for an infra that this version cannot launch on.
        StoreError: the store cannot be used, or put-once does not hold there.
        LaunchFailed: the supervisor did not start.
    """
    _check_launchable(plan.job, plan, environ)
    plan = _pinned(plan)
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
        policy = policy_for(plan.job, timing, launched_at_s=seconds_of(launched_at))
        session = Session(plan, policy, timing, tuple(node_command))
        if plan.is_local:
            _start_supervisor(folder, session, home, environ)
        else:
            submit_session(store, session, home, jobs or SkyJobs(), environ)
    except BaseException:  # Ctrl-C included: a launch either stands or never was
        _erase(root, folder)
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
    log = AttemptLog(store, LAYOUT)
    if not plan.is_local:
        refuse_active_job(run_id, (jobs or SkyJobs()).status(run_id))
    if read_report(store) is not None:  # a node that outlived its supervisor may be done, and nobody has reported it
        _refuse_finished(log, run_id)
    _refuse_active(log, run_id, home, timing, what="resume it")
    if machines is not None and LocalBackend(home).find(run_id):
        raise _active(run_id, "resume it on other machines", "a node on this machine still works on it")
    if (now := code_version()) != plan.code_version:
        logger.warning(
            "%s was launched by code %s and goes on with %s: rows and steps stay right, but bits may differ",
            run_id, plan.code_version, now,
        )  # fmt: skip
    store.probe_put_once()
    answer_cancels(store)
    waited_s = _accept_reviewed(store, log)
    policy = policy_for(plan.job, timing, launched_at_s=seconds_of(launched_at) + waited_s)
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
        _start_supervisor(home.run(run_id), session, home, environ)
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


def cancel_run(
    root: Store,
    run_id: str,
    home: Home,
    *,
    window_s: float = 30.0,
    jobs: Jobs | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> str | None:
    """Ask a run to stop, wherever it runs; it saves what fits into the window and ends. Returns at once.

    A node of this machine that no supervisor watches any more is ended here, which takes up to the window. So is a run
    on a cloud, whose machine SkyPilot was told to take down when this returns; its window is as long as its saves take.

    Args:
        window_s: of a node of this machine.
        jobs: SkyPilot's managed jobs; None for those of the API server that this machine uses.
        say: told in words how long the node may take, where it is waited for.

    Returns:
        What was done with a run on a cloud, in words; None for one of this machine, which says it itself.

    Raises:
        RunNotFound: there is no such run.
        RunFinished: it is over already.
    """
    plan, _ = read_plan(root, run_id)
    store = root.child(run_id)
    log = AttemptLog(store, LAYOUT)
    _refuse_finished(log, run_id)
    ask_cancel(store)
    if not plan.is_local:
        leave = LeaveTime(expected_save_s(plan.job))
        leave.learn(read_events(store, newest_batches=NEWEST_BATCHES))
        longest_s = leave.longest_cancel_s + AFTER_WINDOW_S  # the node ends itself after its window
        return cancel_cloud_run(store, run_id, jobs or SkyJobs(), window_s=longest_s, say=say)
    if home.run(run_id).supervisor_pid() is None:
        backend = LocalBackend(home)
        for handle in backend.find(run_id):
            backend.cancel(handle, Notice(StopReason.CANCELLED, window_s))
    return None


def remove_run(root: Store, run_id: str, home: Home, *, timing: Timing = DEFAULT_TIMING) -> int:
    """Delete everything of a run, in the store and here; returns how many objects that were.

    Raises:
        RunNotFound: there is no such run.
        RunActive: it is alive.
    """
    plan, _ = read_plan(root, run_id)
    store = root.child(run_id)
    if not plan.is_local:
        refuse_active_job(run_id, SkyJobs().status(run_id))
    if LocalBackend(home).find(run_id):
        raise _active(run_id, "remove it", "a node on this machine belongs to it")
    _refuse_active(AttemptLog(store, LAYOUT), run_id, home, timing, what="remove it")
    return _erase(root, home.run(run_id))


def follow_run(root: Store, run_id: str, home: Home, *, since: str = "", poll_s: float = 0.5) -> Iterator[Event]:
    """Yield a run's events, old ones first, until the run is over; the last one is of kind `end`.

    Args:
        since: ISO time; only later events are wanted.

    Raises:
        RunNotFound: there is no such run.
        ClusterError: the run's supervisor on this machine died without a word.
    """
    plan, _ = read_plan(root, run_id)
    folder, log = home.run(run_id), AttemptLog(root.child(run_id), LAYOUT)
    is_ours = folder.session.exists()
    last_word: Event | None = None
    job_watch = None if plan.is_local else JobWatch(SkyJobs(), run_id)

    def is_over(has_ended: bool) -> bool:
        if job_watch is not None and not has_ended:
            return job_watch.is_dead()
        if not is_ours or has_ended:
            return has_ended and folder.supervisor_pid() is None
        if folder.supervisor_pid() is not None:
            return False
        # A run that was resumed on another machine goes on without the supervisor it once had here.
        return bool(LocalBackend(home).find(run_id)) or not is_lease_moving(log)

    for event in EventReader(root.child(run_id)).follow(poll_s=poll_s, until=is_over):
        if event.writer == "supervisor" and event.kind in ("attempt", "decision", "end"):
            last_word = event
        if event.t > since:
            yield event
    if is_ours and (last_word is None or last_word.kind != "end"):
        if (said := read_json(folder.last_word)) is not None:
            yield Event(utc_now(), "end", last_word.attempt if last_word else 0, "supervisor", said)
            return
        left = LocalBackend(home).find(run_id)
        node = f"Its node is still running (attempt {left[-1].attempt}). " if left else "Nothing of it is running. "
        raise ClusterError(
            f"The supervisor of {run_id} died without a word; {folder.supervisor_log} may say why. {node}"
            f"Go on with `alpaca-jobs resume {run_id}`."
        )


def policy_for(job: JobSpec, timing: Timing, *, launched_at_s: float) -> RecoveryPolicy:
    """Turn a job's limits into the policy of its recoveries; the deadline is in seconds since 1970."""
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
        restart_s=timing.restart_s if job.compute.is_local else max(timing.restart_s, leaving_s(job)),
        first_backoff_s=timing.first_backoff_s,
    )


def _pinned(plan: LaunchPlan) -> LaunchPlan:
    """The plan with the base model's commit in its job, as far as it can be found out here."""
    from alpaca_jobs.training.pinning import pin_revision

    train = plan.job.train
    if train.method == "command" and "/" not in train.model:
        return plan  # a word that its own program understands
    found = pin_revision(train.model, train.revision)
    if found.words:
        logger.warning("%s", found.words)
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


def _refuse_finished(log: AttemptLog, run_id: str) -> None:
    records = log.records()
    if records and (records[-1].end or {}).get("stop_reason") == "done":
        raise RunFinished(
            f"{run_id} is done, after {len(records)} attempt(s): nothing is left to do. See it with `alpaca-jobs "
            f"status {run_id}`, or launch the job again."
        )


def _refuse_active(log: AttemptLog, run_id: str, home: Home, timing: Timing, *, what: str) -> None:
    if (pid := home.run(run_id).supervisor_pid()) is not None:
        raise _active(run_id, what, f"its supervisor works on this machine (pid {pid})")
    if not LocalBackend(home).find(run_id) and is_lease_moving(log, sample_s=timing.sample_s):
        raise _active(run_id, what, "its newest attempt renews its lease on another machine")


def _active(run_id: str, what: str, why: str) -> RunActive:
    return RunActive(
        f"{run_id} is alive: {why}. To {what}, stop it first with `alpaca-jobs cancel {run_id}`; to watch it: "
        f"`alpaca-jobs logs {run_id} -f`."
    )


def _start_supervisor(folder: RunFolder, session: Session, home: Home, environ: Mapping[str, str]) -> None:
    """Start the supervisor, detached, and wait until it has taken the run; nothing of it is left if it does not."""
    folder.make()
    write_json(folder.session, session.to_json())
    said_before = folder.supervisor_log.stat().st_size if folder.supervisor_log.exists() else 0
    pid = None
    try:
        pid = _detach_supervisor(folder, home, environ)
        give_up_at = time.monotonic() + _SUPERVISOR_START_S
        while pid is None or folder.last_supervisor() != pid:
            if pid is None or not _lives(pid) or time.monotonic() > give_up_at:
                said = folder.supervisor_log.read_bytes()[said_before:].decode(errors="replace").strip()
                last = said.splitlines()[-1] if said else "it said nothing"
                raise LaunchFailed(f"The supervisor of {folder.run_id} did not start: {last} ({folder.supervisor_log})")
            time.sleep(0.02)
    except BaseException:
        if pid is not None and _lives(pid):
            psutil.Process(pid).kill()
        for handle in LocalBackend(home).find(folder.run_id):
            kill_marked(handle.nonce)
        raise


def _detach_supervisor(folder: RunFolder, home: Home, environ: Mapping[str, str]) -> int | None:
    """Start the supervisor's process; returns its pid, None if not even that could be."""
    argv = [sys.executable, "-S", "-c", _DETACH, sys.executable, "-P", "-m", "cluster.local.supervisor"]
    argv += ["--home", str(home.root), "--run", folder.run_id]
    inherited = {name: value for name, value in environ.items() if name != NODE_MARK}
    with folder.supervisor_log.open("ab") as log:
        detached = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=inherited, check=False
        )
    return int(detached.stdout) if detached.stdout.strip().isdigit() else None


def _lives(pid: int) -> bool:
    try:
        return is_alive(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return False


def _erase(root: Store, folder: RunFolder) -> int:
    """Delete a run; what makes it a run goes last, so that an interrupted removal can be repeated."""
    store = root.child(folder.run_id)
    keys = [key for key in store.list() if key != JOB_KEY]
    store.delete(keys)
    try:
        store.abort_unfinished("")  # parts of an upload that was interrupted cost money and are in no listing
    except StorePermission as exc:
        logger.warning("uploads of %s that never ended may be left: %s", folder.run_id, exc)
    store.delete([JOB_KEY])
    root.delete([index_key(folder.run_id)])
    folder.remove()
    return len(keys) + 1
