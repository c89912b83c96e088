"""Watching a run until it is over, from any machine."""

from __future__ import annotations

from collections.abc import Iterator

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.cloud.launching import JobWatch
from cluster.cloud.sky_backend import SkyJobs
from cluster.errors import ClusterError
from cluster.event_reading import EventReader
from cluster.events import Event, utc_now
from cluster.local.backend import LocalBackend
from cluster.runs.home import Home, read_json
from cluster.runs.run_view import is_lease_moving, read_plan


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
