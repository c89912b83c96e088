"""The demo job's node is killed again and again while it trains: how long until the next one makes a step, and on what?

A real run under the real supervisor, on this machine, in a folder of its own that is deleted afterwards. Each kill is
SIGKILL to the node's whole tree, without a word of notice. The split is the one that `alpaca-jobs status` and the
report show (cluster/runs/recoveries.py), from the last sign of life of one attempt to the first training step of the
next. Here nothing is bought, and what a cloud's set-up is, our program's own start, is counted as ours.

    python benchmarks/recovery.py [--kills 5]
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, load_job
from checkpoints.store import Store
from cluster.errors import RunFailed, RunFinished
from cluster.launch.drill_killer import Aim, Kill, Killer
from cluster.launch.following import follow_run
from cluster.launch.launching import start_run
from cluster.launch.planner import offers_for, plan_launch
from cluster.launch.stopping import cancel_run
from cluster.local.backend import LocalBackend
from cluster.plan import LaunchPlan
from cluster.runs.home import Home
from cluster.runs.report import read_report
from cluster.runs.run_ids import new_run_id

AIM_S = 10.0
DEMO = Path(__file__).resolve().parent.parent / "alpaca_jobs" / "examples" / "demo.yaml"
TOTAL_STEPS = 60  # of the demo job, as its own comments say
COLUMNS = {
    "detect": "notice_s", "provision": "buy_s", "set-up": "set_up_s", "start": "start_s", "Ray": "ray_s",
    "imports": "imports_s", "restore": "restore_s", "first step": "first_step_s",
}  # fmt: skip
"""Heading -> field of Recovery. `start` is all that follows; the claim of the attempt is in none of the four."""


def aims(kills: int) -> tuple[Aim, ...]:
    """Kills while it trains, evenly over its steps."""
    return tuple(Aim("step", TOTAL_STEPS * place // (kills + 1), 0.0) for place in range(1, kills + 1))


def run_with_kills(job: JobSpec, home: Home, *, kills: int) -> list[dict[str, float]]:
    """Run a job to its end with its node killed so often; each recovery as the report has it, seconds by name.

    Raises:
        RunFailed: it did not finish, or was killed less often: it was over too soon.
    """
    plan = plan_launch(job, run_id=new_run_id(job.name), offers=offers_for(job))
    root = Store.open(plan.store_uri)
    killer = Killer(LocalBackend(home), plan.run_id, aims(kills), on_kill=_say_kill)
    start_run(plan, home)
    killer.start()
    end = None
    try:
        for event in follow_run(root, plan.run_id, home):
            end = event if event.kind == "end" else end
    finally:
        killer.stop()
        if end is None:
            _end(plan, root, home)
    report = read_report(root.child(plan.run_id))
    if report is None or report["exit_code"] != 0:
        raise RunFailed(f"The run did not finish: {'no report' if report is None else report['words']}")
    found = [dict(one) for one in report["recoveries"]]
    if len(found) < kills:
        raise RunFailed(f"{len(found)} recoveries, but {kills} were wanted: the run was over too soon.")
    return found


def _end(plan: LaunchPlan, root: Store, home: Home) -> None:
    """Stop a run that is not watched any more, and wait until it has."""
    with suppress(RunFinished):
        cancel_run(root, plan.run_id, home)
    while home.run(plan.run_id).supervisor_pid() is not None:
        time.sleep(0.2)


def _say_kill(kill: Kill) -> None:
    print(f"killed attempt {kill.attempt} after step {kill.reached}", file=sys.stderr, flush=True)


def ours_s(recovery: dict[str, float]) -> float:
    """What of a recovery is ours: from the decision to go on to the first step."""
    return recovery["set_up_s"] + recovery["start_s"]


def report(recoveries: Sequence[dict[str, float]]) -> bool:
    """Print the split of every recovery and the medians; whether the aim was met."""
    print("kill  " + "".join(f"{name:>11}" for name in (*COLUMNS, "ours", "total")))
    lines = [
        [*(one[field] for field in COLUMNS.values()), ours_s(one), one["total_s"]] for one in recoveries
    ]  # fmt: skip
    medians = [statistics.median(column) for column in zip(*lines, strict=True)]
    for name, line in [*((str(number), line) for number, line in enumerate(lines, start=1)), ("median", medians)]:
        print(f"{name:6}" + "".join(f"{value:>9.1f} s" for value in line))
    median = medians[-2]
    met = median <= AIM_S
    print(f"\nours (set-up and start): {median:.1f} s, the median of {len(lines)}; at most {AIM_S:.0f} s is the aim. "
          f"aim met: {'yes' if met else 'no'}")  # fmt: skip
    return met


def main() -> None:
    """Run, print, and exit 1 if the aim was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, choices=range(1, 11), metavar="1 to 10")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; the demo job, killed {arguments.kills} times\n")
    with tempfile.TemporaryDirectory() as name:
        job = change_job(load_job(DEMO), {"store": f"file://{name}/store"})
        found = run_with_kills(job, Home(Path(name) / "home"), kills=arguments.kills)
    sys.exit(0 if report(found) else 1)


if __name__ == "__main__":
    main()
