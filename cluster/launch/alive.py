"""What is refused because a run is done, or still works."""

from __future__ import annotations

from checkpoints.attempts import AttemptLog
from cluster.errors import RunActive, RunFinished
from cluster.local.backend import LocalBackend
from cluster.runs.home import Home
from cluster.runs.run_view import is_lease_moving
from cluster.runs.session import Timing


def refuse_finished(log: AttemptLog, run_id: str) -> None:
    """Raise RunFinished if the newest attempt ended as done."""
    records = log.records()
    if records and (records[-1].end or {}).get("stop_reason") == "done":
        raise RunFinished(
            f"{run_id} is done, after {len(records)} attempt(s): nothing is left to do. See it with `alpaca-jobs "
            f"status {run_id}`, or launch the job again."
        )


def refuse_active(log: AttemptLog, run_id: str, home: Home, timing: Timing, *, what: str) -> None:
    """Raise RunActive if a supervisor of this machine works on the run, or its newest attempt renews its lease."""
    refuse_supervised(run_id, home, what=what)
    if not LocalBackend(home).find(run_id) and is_lease_moving(log, sample_s=timing.sample_s):
        raise still_alive(run_id, what, "its newest attempt renews its lease on another machine")


def refuse_supervised(run_id: str, home: Home, *, what: str) -> None:
    """Raise RunActive if a supervisor of this machine works on the run; nothing is waited for."""
    if (pid := home.run(run_id).supervisor_pid()) is not None:
        raise still_alive(run_id, what, f"its supervisor works on this machine (pid {pid})")


def still_alive(run_id: str, what: str, why: str) -> RunActive:
    """The refusal to do `what` with a run that is alive, with what to do first."""
    return RunActive(
        f"{run_id} is alive: {why}. To {what}, stop it first with `alpaca-jobs cancel {run_id}`; to watch it: "
        f"`alpaca-jobs logs {run_id} -f`."
    )
