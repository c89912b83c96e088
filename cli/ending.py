"""End what an interrupted command has started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli import render
from cli.follow import how_to_come_back

if TYPE_CHECKING:
    from cli.finding import FoundRun
    from cluster.cloud.launching import Jobs


def end_runs(run_ids: Sequence[str], *, jobs: Jobs | None = None) -> None:
    """Stop the runs of a drill that was interrupted, wherever they run; nobody would come back to them.

    Args:
        jobs: SkyPilot's managed jobs, for runs on a cloud; None for those of this machine's API server.
    """
    from checkpoints.errors import CheckpointError
    from cli.finding import find_run
    from cluster.errors import ClusterError, RunFinished, RunNotFound

    for run_id in run_ids:
        try:
            found = find_run(run_id, None)
        except RunNotFound:
            render.say(f"Interrupted before {run_id} was launched; nothing of it runs.")
            continue
        if found.is_alive_here is False:
            continue
        render.say(f"Interrupted. Stopping {run_id}, which may save for up to half a minute ...")
        try:
            said = _end(found, jobs)
        except RunFinished:
            said = f"{run_id} was done already."
        except (ClusterError, CheckpointError) as exc:  # the others are to be stopped all the same
            render.say(f"{run_id} could not be stopped: {exc}")
            continue
        except KeyboardInterrupt:
            render.say(f"It was asked to stop and is left to it.\n{how_to_come_back(found)}")
            return
        render.say(f"{said} alpaca-jobs rm {run_id} deletes what it left in its store.")


def _end(found: FoundRun, jobs: Jobs | None) -> str:
    """Stop one run and wait until it has; returns what was done."""
    from cluster.launch.stopping import cancel_run

    said = cancel_run(found.root, found.run_id, found.home, jobs=jobs, say=render.say)
    while found.home.run(found.run_id).supervisor_pid() is not None:
        time.sleep(0.2)
    return said or f"{found.run_id} has stopped."
