"""What SkyPilot runs on a cloud's machine: `cluster.node.main`, told by the task's environment who and where it is.

    ALPACA_JOBS_STORE=s3://... ALPACA_JOBS_RUN=... ALPACA_JOBS_SESSION=000001 python -m cluster.cloud.node

With our plugin in SkyPilot's API server, ALPACA_JOBS_ATTEMPT and ALPACA_JOBS_PLACEMENT hold what it handed out. Without
it the node takes the next number itself, once the attempt before is seen to stand still, and asks the decision table
before it begins: SkyPilot's own strategy starts machines for an exit code without a limit. Where several machines work
together, SkyPilot runs this on each of them and says which one it is (SKYPILOT_NODE_RANK, SKYPILOT_NODE_IPS).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from cluster.cloud.limit_watch import watch_limits
from cluster.cloud.places import is_there
from cluster.cloud.run import ATTEMPT_VARIABLE, PLACEMENT_VARIABLE, RUN_VARIABLE, STORE_VARIABLE, CloudRun
from cluster.cloud.templates import WITHOUT_PLUGIN
from cluster.errors import ClusterError, NodeLost
from cluster.events import iso_time
from cluster.exits import NODE_EXITS, NOTHING_FOLLOWS
from cluster.node.main import LEASE_S, NodeArguments, run_node
from cluster.node.member import MEET_WITHIN_S
from cluster.node.node_group import DEFAULT_RAY_PORT, NodeGroup
from cluster.node.power import PowerSwitch, minutes_after, started_at_s
from cluster.plan import Placement
from cluster.process_tree import NODE_MARK, new_nonce
from cluster.recovery import TABLE, Action, Decision, StopReason
from cluster.runs.run_view import is_lease_moving

logger = logging.getLogger(__name__)

_STANDSTILL_S = 120.0


def placement_here(run: CloudRun, environ: Mapping[str, str]) -> Placement:
    """Which of the run's places this machine is: as handed out, else by what SkyPilot says of the cluster.

    SkyPilot does not say whether a cluster is on spot. Where the region holds both kinds, the dearer one counts, so
    that no limit is crossed.

    Raises:
        ClusterError: it is none of them.
    """
    if told := environ.get(PLACEMENT_VARIABLE):
        return Placement.from_json(json.loads(told))
    cluster: dict[str, Any] = json.loads(environ.get("SKYPILOT_CLUSTER_INFO") or "{}")
    cloud, region = str(cluster.get("cloud", "")).lower(), cluster.get("region")
    here = [place for place in run.candidates if is_there(place, cloud=cloud, region=region)]
    if here:
        return max(here, key=lambda place: place.price_per_hour_usd or 0.0)
    raise ClusterError(f"This machine is in {cloud}/{region}, which is no place of {run.plan.run_id}'s plan.")


def group_here(environ: Mapping[str, str]) -> NodeGroup:
    """The machines that work together here, as SkyPilot tells each of them; one machine is alone."""
    addresses = tuple((environ.get("SKYPILOT_NODE_IPS") or "").split())
    if len(addresses) < 2:
        return NodeGroup()
    return NodeGroup(int(environ["SKYPILOT_NODE_RANK"]), addresses, DEFAULT_RAY_PORT)


def joined_attempt(log: AttemptLog, group: NodeGroup, *, patience_s: float = MEET_WITHIN_S) -> int:
    """The attempt that the head of these machines has claimed, where nobody hands numbers out.

    Raises:
        NodeLost: it has claimed none within `patience_s`.
    """
    give_up_at = time.monotonic() + patience_s
    while time.monotonic() < give_up_at:
        for record in reversed(log.records()):
            if record.end is None and (record.claim or {}).get("addresses") == list(group.addresses):
                return record.number
        time.sleep(1.0)
    raise NodeLost(f"Machine 0 ({group.addresses[0]}) has begun no attempt within {patience_s:.0f} s.")


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


@dataclass(frozen=True)
class Outcome:
    """How this machine's part ended.

    Attributes:
        follows: whether another machine may have to go on; only then may the exit code ask for one.
        is_replaced: another machine works already, so this one turns itself off at once. Any other stays for some
            minutes: SkyPilot has to read its exit code first, for a machine that is gone looks lost to it.
    """

    reason: StopReason
    follows: bool
    is_replaced: bool = False

    @property
    def exit_code(self) -> int:
        """What SkyPilot is told. Codes that it would start another machine for are for outcomes that want one."""
        if self.reason in (StopReason.DONE, StopReason.PART_DONE):
            return 0
        code = NODE_EXITS.get(self.reason, NOTHING_FOLLOWS)
        return code if self.follows or self.reason in _FINAL else NOTHING_FOLLOWS


_FINAL: Final = frozenset(
    reason
    for reason, rule in TABLE.items()
    if rule.action is not Action.RELAUNCH and reason is not StopReason.SUPERSEDED
)


def main(environ: Mapping[str, str] = os.environ) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )  # fmt: skip
    os.environ.setdefault(NODE_MARK, new_nonce())
    switch = PowerSwitch.of(environ)
    switch.start()
    outcome = carry_out(environ, switch)
    # SkyPilot takes the machine down, if it is still there to do so; where it is not, the machine goes by itself.
    switch.let_go(in_minutes=0 if outcome.is_replaced else minutes_after(outcome.reason))
    return outcome.exit_code


def carry_out(environ: Mapping[str, str], switch: PowerSwitch | None = None) -> Outcome:
    """Carry out one attempt, and say the run's end where nothing follows it.

    Args:
        switch: the machine's; held while the attempt works. None: the machine is left alone.
    """
    switch = switch or PowerSwitch(is_rented=False)
    booted_at_s = started_at_s()
    try:
        run = CloudRun.open(environ)
        place, group, log = placement_here(run, environ), group_here(environ), AttemptLog(run.store, LAYOUT)
        attempt = int(environ.get(ATTEMPT_VARIABLE) or 0)
        if not attempt:
            attempt = next_attempt(log) if group.is_head else joined_attempt(log, group)
            if (over := outcome_if_over(run, is_head=group.is_head)) is not None:
                return over  # nobody asked before this machine was bought
        before_usd = run.machines_usd()
    except NodeLost as exc:
        logger.error("this machine cannot begin: %s", exc)
        return outcome_if_over(run, is_head=False) or Outcome(StopReason.NODE_FAILURE, follows=True)
    except ClusterError as exc:  # of no run, in no place of it, or not needed: so would be the next machine
        logger.error("this machine cannot begin: %s", exc)
        return Outcome(StopReason.SUPERSEDED, follows=False)
    except CheckpointError as exc:
        logger.error("this machine cannot begin: %s", exc)
        return Outcome(StopReason.STORE_FAILURE, follows=True)
    scratch = Path.home() / ".alpaca-jobs" / f"scratch-{run.plan.run_id}-{attempt:06d}"
    store_uri, run_id = environ[STORE_VARIABLE], environ[RUN_VARIABLE]
    after = partial(settle, run, is_head=group.is_head, has_plugin=bool(environ.get(ATTEMPT_VARIABLE)))

    def outstayed(reason: StopReason) -> None:
        switch.let_go(in_minutes=minutes_after(reason))  # before anything that a store may keep waiting
        after(reason)

    arguments = NodeArguments(
        store_uri, run_id, attempt, place.to_json(), scratch, group,
        until=run.until if run.has_next_part else None, machine_started_at=iso_time(booted_at_s),
        guard=partial(watch_limits, run, place, booted_at_s, before_usd), alive=switch.hold, gone=switch.let_go,
        outstayed=outstayed,
    )  # fmt: skip
    return after(run_node(arguments))


def settle(run: CloudRun, reason: StopReason, *, is_head: bool, has_plugin: bool) -> Outcome:
    """Whether anything follows an attempt that ended; if not, the run's end is said, by the head of its machines."""
    is_over = outcome_if_over(run, is_head=is_head) is not None
    if is_over or has_plugin or reason in (*WITHOUT_PLUGIN, StopReason.DONE, StopReason.PART_DONE):
        return Outcome(reason, follows=not is_over, is_replaced=reason is StopReason.SUPERSEDED)
    words = (
        f"The run has stopped ({reason.value}). Another start may cure that, but SkyPilot without our plugin makes "
        f"none for it. `alpaca-jobs resume {run.plan.run_id}` goes on from the newest commit."
    )
    _close(run, Decision(Action.GIVE_UP, words, exit_code=TABLE[reason].exit_code or 3, reason=reason), is_head=is_head)
    return Outcome(reason, follows=False)


def outcome_if_over(run: CloudRun, *, is_head: bool) -> Outcome | None:
    """Ask what follows; None if something does, or if the store does not say."""
    try:
        decision = run.decide()
    except CheckpointError as exc:
        logger.warning("what follows could not be read: %s", exc)
        return None
    if decision.action not in (Action.FINISH, Action.GIVE_UP):
        return None
    logger.info("%s: %s", decision.action, decision.words)
    _close(run, decision, is_head=is_head)
    return Outcome(decision.reason or StopReason.SUPERSEDED, follows=False)


def _close(run: CloudRun, decision: Decision, *, is_head: bool) -> None:
    if not is_head:
        return
    try:
        run.close(decision)
    except CheckpointError as exc:
        logger.warning("the end of the run could not be told: %s", exc)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads of Ray and fsspec must not keep a node alive whose work is over
