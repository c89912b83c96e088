"""Cancelling and removing runs."""

from __future__ import annotations

import logging
from collections.abc import Callable

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import StorePermission
from checkpoints.store import Store
from cluster.cloud.launching import Jobs, cancel_cloud_run, refuse_active_job
from cluster.cloud.sky_backend import SkyJobs
from cluster.control import ask_cancel
from cluster.event_reading import read_events
from cluster.exits import Notice
from cluster.job_record import JOB_KEY
from cluster.launch.alive import refuse_active, refuse_finished, still_alive
from cluster.local.backend import LocalBackend
from cluster.node.hard_end import AFTER_WINDOW_S
from cluster.node.leave_time import NEWEST_BATCHES, LeaveTime, expected_save_s
from cluster.recovery import StopReason
from cluster.runs.home import Home, RunFolder
from cluster.runs.run_view import index_key, read_plan
from cluster.runs.session import DEFAULT_TIMING, Timing

logger = logging.getLogger(__name__)


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
    refuse_finished(log, run_id)
    ask_cancel(store)
    if not plan.is_local:
        leave = LeaveTime(expected_save_s(plan.job, plan.num_parameters))
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
        raise still_alive(run_id, "remove it", "a node on this machine belongs to it")
    refuse_active(AttemptLog(store, LAYOUT), run_id, home, timing, what="remove it")
    return erase_run(root, home.run(run_id))


def erase_run(root: Store, folder: RunFolder) -> int:
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
