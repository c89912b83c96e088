"""What SkyPilot runs on a cloud's machine: `cluster.node.main`, told by the task's environment who and where it is.

    ALPACA_JOBS_STORE=s3://... ALPACA_JOBS_RUN=... ALPACA_JOBS_SESSION=000001 python -m cluster.cloud.node

With our plugin in SkyPilot's API server, ALPACA_JOBS_ATTEMPT and ALPACA_JOBS_PLACEMENT hold what it handed out. Without
it the node takes the next number itself, once the attempt before is seen to stand still.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from cluster.cloud.run import ATTEMPT_VARIABLE, PLACEMENT_VARIABLE, RUN_VARIABLE, STORE_VARIABLE, CloudRun
from cluster.errors import ClusterError
from cluster.exits import NODE_EXITS, Notice, write_notice
from cluster.node.main import LEASE_S, NodeArguments, run_node
from cluster.plan import LaunchPlan, Placement
from cluster.process_tree import NODE_MARK, new_nonce
from cluster.recovery import Action, StopReason
from cluster.runs.run_view import is_lease_moving

logger = logging.getLogger(__name__)

DEADLINE_WINDOW_S = 60.0  # to save and leave before the deadline itself
_STANDSTILL_S = 120.0


def placement_here(plan: LaunchPlan, environ: Mapping[str, str]) -> Placement:
    """Which of the plan's places this machine is: as handed out, else by what SkyPilot says of the cluster.

    Raises:
        ClusterError: it is none of them.
    """
    if told := environ.get(PLACEMENT_VARIABLE):
        return Placement.from_json(json.loads(told))
    cluster: dict[str, Any] = json.loads(environ.get("SKYPILOT_CLUSTER_INFO") or "{}")
    cloud, region = str(cluster.get("cloud", "")).lower(), cluster.get("region")
    for place in plan.candidates:
        if (place.infra, place.region) == (cloud, region):
            return place
    raise ClusterError(f"This machine is in {cloud}/{region}, which is no place of {plan.run_id}'s plan.")


def next_attempt(log: AttemptLog, *, patience_s: float = _STANDSTILL_S) -> int:
    """The number to claim where nobody hands numbers out, once the attempt before it has stood still for a lease.

    Raises:
        ClusterError: the attempt before still works after `patience_s`.
    """
    give_up_at = time.monotonic() + patience_s
    while is_lease_moving(log, sample_s=LEASE_S):
        if time.monotonic() > give_up_at:
            raise ClusterError(f"Attempt {log.newest()} still renews its lease; this machine is not needed.")
    newest = log.newest()
    if newest and "end" not in log.present().get(newest, ()):
        log.put_end(
            newest, {"stop_reason": StopReason.LOST.value, "detail": "its lease stood still", "by": "successor"}
        )
    return newest + 1


def _watch_deadline(run: CloudRun, scratch: Path) -> None:
    """Give this node notice shortly before the deadline, as the supervisor does on local."""
    until = run.session.policy.deadline_at_s
    if until is None:
        return

    def leave() -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        write_notice(scratch, Notice(StopReason.DEADLINE, DEADLINE_WINDOW_S))
        os.kill(os.getpid(), 15)

    timer = threading.Timer(max(until - time.time() - DEADLINE_WINDOW_S, 1.0), leave)
    timer.daemon = True
    timer.start()


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )  # fmt: skip
    os.environ.setdefault(NODE_MARK, new_nonce())
    try:
        run = CloudRun.open(environ)
        place = placement_here(run.plan, environ)
        attempt = int(environ.get(ATTEMPT_VARIABLE) or next_attempt(AttemptLog(run.store, LAYOUT)))
    except (ClusterError, CheckpointError) as exc:
        logger.error("this machine cannot begin: %s", exc)
        return NODE_EXITS[StopReason.SUPERSEDED if isinstance(exc, ClusterError) else StopReason.STORE_FAILURE]
    scratch = Path.home() / ".alpaca-jobs" / f"scratch-{run.plan.run_id}-{attempt:06d}"
    _watch_deadline(run, scratch)
    store_uri, run_id = environ[STORE_VARIABLE], environ[RUN_VARIABLE]
    reason = run_node(NodeArguments(store_uri, run_id, attempt, place.to_json(), scratch))
    try:
        decision = run.decide()
        if decision.action in (Action.FINISH, Action.GIVE_UP):
            run.close(decision)
    except CheckpointError as exc:
        logger.warning("the end of the run could not be told: %s", exc)
    return NODE_EXITS[reason]


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads of Ray and fsspec must not keep a node alive whose work is over
