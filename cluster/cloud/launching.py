"""Starting, resuming and cancelling a run on a cloud: what cluster/launch/launching.py does with a supervisor on local.

SkyPilot's managed job does the supervisor's work, wherever SkyPilot's API server runs; this machine may be shut. The
run itself is in the store, so that everything that only looks (`status`, `logs`, `runs`) needs no SkyPilot.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from secrets import token_hex
from typing import Protocol

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.cloud.places import task_places
from cluster.cloud.run import CloudRun, parts_left, put_session, session_numbers
from cluster.cloud.shipped_code import write_shipped_code
from cluster.cloud.sky_backend import JobStatus
from cluster.cloud.templates import RAY_TOKEN, TaskSettings, check_renderable, render_tasks, secret_names
from cluster.code_version import code_version
from cluster.errors import ClusterError, RunActive
from cluster.event_reading import read_events
from cluster.events import Event
from cluster.plan import LaunchPlan
from cluster.recovery import Action, Decision, StopReason
from cluster.runs.home import Home
from cluster.runs.run_view import is_lease_moving
from cluster.runs.session import Session

logger = logging.getLogger(__name__)

_AFTER_DEADLINE_S = 120.0  # the node leaves before the deadline; this long after it, it is killed
_LOOK_EVERY_S = 1.0
_STANDSTILL_S = 30.0  # a lease is renewed every second, and lost after 20
NO_PLUGIN = (
    "SkyPilot's API server has no alpaca-jobs plugin, so SkyPilot's own strategy recovers this run: it goes back first "
    "to the region that was lost, and looks at no budget before it buys the next machine. To change that: alpaca-jobs "
    "plugin install, then sky api stop"
)


class Jobs(Protocol):
    """What is wanted of SkyPilot (cluster/cloud/sky_backend.py)."""

    def has_plugin(self) -> bool:
        """Whether the server has our strategy."""
        ...

    def submit(self, task_yaml: str, *, name: str, secrets: Mapping[str, str]) -> int:
        """Submit a managed job of one task, or of several in a chain."""
        ...

    def status(self, name: str) -> JobStatus | None:
        """How the newest managed job of that name stands."""
        ...

    def cancel(self, name: str) -> JobStatus | None:
        """Cancel it; returns how it stood before, None where the server knows no such job."""
        ...


@dataclass(frozen=True)
class Submitted:
    """A managed job that was submitted."""

    job_id: int
    has_plugin: bool


def preview_task(plan: LaunchPlan) -> str:
    """The YAML that a launch would submit, as far as it can be said before; asks nobody and starts nothing.

    Raises:
        BackendMissing: the plan asks for what this version does not do on a cloud.
    """
    settings = TaskSettings(session="000001", code_folder="~/.alpaca-jobs/code", has_plugin=True)
    return render_tasks(plan, settings)


def submit_session(store: Store, session: Session, home: Home, jobs: Jobs, environ: Mapping[str, str]) -> Submitted:
    """Put the session in the store and hand the tasks of the parts that are left to SkyPilot.

    Raises:
        BackendMissing, LaunchFailed, ClusterError: it was not submitted; nothing was started.
    """
    check_renderable(session.plan)
    # The strategy decides among what SkyPilot can be told: a region whose zones were all refused is one refusal.
    plan = replace(
        session.plan,
        candidates=tuple(task_places(session.plan.candidates)),
        generation=tuple(task_places(session.plan.generation)),
    )
    parts = parts_left(store, plan)
    session = replace(session, plan=plan)
    has_plugin = jobs.has_plugin()
    if not has_plugin:
        logger.warning("%s", NO_PLUGIN)
    # Named by the code that is shipped, not by the launch's: one folder with two wheels could not be installed.
    code = home.root / "code" / code_version().replace("+", "-")
    write_shipped_code(code)
    deadline = session.policy.deadline_at_s
    settings = TaskSettings(
        session=put_session(store, session),
        code_folder=str(code),
        has_plugin=has_plugin,
        end_at_s=None if deadline is None else deadline + _AFTER_DEADLINE_S,
    )
    tokens = {RAY_TOKEN: token_hex(24)}  # one for each launch; machines that work alone mint their own
    secrets = {name: tokens.get(name) or environ[name] for name in secret_names(plan)}
    # Said before it is done: the controller may have said the run's end before `submit` returns. It also tells a
    # follower that an end which was said by an earlier session is not the end any more.
    handing_over = Decision(Action.RELAUNCH, "Handed over to SkyPilot", placements=parts[0].candidates)
    newest_session(store, plan.run_id).tell(handing_over)
    try:
        job_id = jobs.submit(render_tasks(plan, settings, parts), name=plan.run_id, secrets=secrets)
    except BaseException:  # Ctrl-C may come after SkyPilot has taken it, and nobody would know of the machine
        jobs.cancel(plan.run_id)
        raise
    return Submitted(job_id, has_plugin)


def cancel_cloud_run(
    store: Store,
    run_id: str,
    jobs: Jobs,
    *,
    window_s: float,
    say: Callable[[str], object] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Wait until the node has left, and take everything down; then say that the run ended.

    The node is waited for while its lease moves, for at most `window_s`; where nobody renews it, nobody saves. To be
    called after the store was told (`control.ask_cancel`), which the node looks at once a second. An end that was said
    already, by a run that had stopped or by the node itself, stays the end.

    Returns:
        What was done, in words.
    """
    log = AttemptLog(store, LAYOUT)
    before = _said_end(store)
    if before is None and _is_open(log):
        say(
            f"{run_id} was asked to stop; its node saves first. That is waited for, at most {window_s:.0f} s, and then "
            "the machine is taken down."
        )
        _wait_for_node(log, window_s, sleep)
    job = jobs.cancel(run_id)
    if job is None:
        done = (
            "SkyPilot's API server here knows no job of it, so nothing was taken down from here; `alpaca-jobs doctor` "
            "looks for what still bills."
        )
    elif job.is_over:
        done = f"SkyPilot's job {job.job_id} was over already ({job.status})."
    else:
        done = f"SkyPilot was told to end job {job.job_id} and to take its machine down."
    if before is not None:
        return f"{run_id} had stopped before: {before.fields.get('words') or before.fields.get('reason')} {done}"
    if job is None and is_lease_moving(log, sleep=sleep):
        return (
            f"{run_id} was asked to stop through its store, but attempt {log.newest()} still works, and SkyPilot's API "
            "server here knows no job of it. It saves and leaves by itself; to be sure, cancel it from the machine "
            "that launched it."
        )
    run = newest_session(store, run_id)
    run.end_lost()
    if _said_end(store) is None:
        words = f"Cancelled. {done} `alpaca-jobs resume {run_id}` goes on from here."
        run.close(Decision(Action.GIVE_UP, words, exit_code=130, reason=StopReason.CANCELLED))
    return f"{run_id} has stopped. {done}"


def newest_session(store: Store, run_id: str) -> CloudRun:
    """The run's last session.

    Raises:
        ClusterError: it has none.
    """
    numbers = session_numbers(store)
    if not numbers:
        raise ClusterError(f"{store.uri} holds no session of {run_id}; it was never launched on a cloud.")
    root = store.uri.removesuffix("/").removesuffix(f"/{run_id}")
    return CloudRun.open({"ALPACA_JOBS_STORE": root, "ALPACA_JOBS_RUN": run_id, "ALPACA_JOBS_SESSION": max(numbers)})


def refuse_active_job(run_id: str, job: JobStatus | None) -> None:
    """Stop a resume while SkyPilot still works on the run.

    Raises:
        RunActive: it does.
    """
    if job is not None and not job.is_over:
        raise RunActive(
            f"{run_id} is alive: SkyPilot says {job.status}. Watch it with `alpaca-jobs logs {run_id} -f`, or stop it "
            f"first with `alpaca-jobs cancel {run_id}`."
        )


class JobWatch:
    """Looks now and then whether SkyPilot still works on a run that has not said its end.

    A job whose machine could not even be set up ends without a word of ours. Asking SkyPilot takes seconds, so it is
    asked rarely; what it says counts when it has said so twice, because a run's own last word may come a moment later.
    """

    def __init__(
        self, jobs: Jobs, run_id: str, *, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs, self._run_id, self._every_s, self._clock = jobs, run_id, every_s, clock
        self._looked_at = clock()
        self._ended: JobStatus | None = None

    def is_dead(self) -> bool:
        """Whether the job was over at the last look already, and still is."""
        now = self._clock()
        if now - self._looked_at < self._every_s:
            return False
        self._looked_at = now
        try:
            status = self._jobs.status(self._run_id)
        except ClusterError as exc:
            logger.warning("%s", exc)
            return False
        was_over, self._ended = self._ended is not None, status if status is not None and status.is_over else None
        return was_over and self._ended is not None

    def error(self) -> ClusterError:
        """What to tell whoever follows the run."""
        job = self._ended
        said = f"SkyPilot says {job.status} ({job.reason or 'no reason given'})" if job else "SkyPilot has no such job"
        number = job.job_id if job else "JOB"
        return ClusterError(
            f"{self._run_id} ended without a word: {said}. Its machine's own words: sky jobs logs {number}. Go on with "
            f"`alpaca-jobs resume {self._run_id}`."
        )


def _said_end(store: Store) -> Event | None:
    """The run's last word, if it is that it ended."""
    told = [one for one in read_events(store, newest_batches=3) if one.writer == "supervisor" and one.kind != "log"]
    return told[-1] if told and told[-1].kind == "end" else None


def _wait_for_node(log: AttemptLog, most_s: float, sleep: Callable[[float], None]) -> None:
    """Until the attempt has ended, its lease stands still, or the time is over."""
    began = moved_at = time.monotonic()
    counter = None
    while _is_open(log) and time.monotonic() - began < most_s:
        newest = log.read_lease(log.newest())
        now = time.monotonic()
        if newest != counter:
            counter, moved_at = newest, now
        elif now - moved_at > _STANDSTILL_S:
            return
        sleep(_LOOK_EVERY_S)


def _is_open(log: AttemptLog) -> bool:
    newest = log.newest()
    return bool(newest) and "end" not in log.present().get(newest, ())
