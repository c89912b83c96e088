"""End what an interrupted command has started."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cli import render
from cli.follow import how_to_come_back


def end_runs(run_ids: Sequence[str]) -> None:
    """Stop the runs of a drill that was interrupted; nobody would come back to them."""
    from cli.finding import find_run
    from cluster.launch.launching import cancel_run

    for run_id in run_ids:
        found = find_run(run_id, None)
        if not found.is_alive_here:
            continue
        render.say(f"Interrupted. Stopping {run_id}, which may save for up to half a minute ...")
        try:
            cancel_run(found.root, run_id, found.home)
            while found.home.run(run_id).supervisor_pid() is not None:
                time.sleep(0.2)
        except KeyboardInterrupt:
            render.say(f"It was asked to stop and is left to it.\n{how_to_come_back(found)}")
            return
        render.say(f"{run_id} has stopped. alpaca-jobs rm {run_id} deletes what it left in its store.")
