"""What runs on a node: claim the attempt, find the newest state that counts, run the stages left, say how it ended.

    python -m cluster.node.main --store URI --run RUN_ID --attempt N --placement JSON --scratch DIR

One process per node starts everything else (Ray, actors, workers, a teacher) and takes it all down with it. SIGTERM is
a preemption notice, and so is what the cloud's metadata service announces (cluster/node/notice.py). The exit code says
how it ended (cluster/exits.py); the end record in the store says more.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, CheckpointError, Superseded
from checkpoints.fence import Fence, LeaseKeeper
from checkpoints.store import Store
from cluster.code_version import code_version
from cluster.control import CancelWatch
from cluster.egress import paid_s_per_byte
from cluster.events import EventLogHandler, EventWriter, utc_now
from cluster.exits import NODE_EXITS, Notice, read_notice
from cluster.job_record import job_of, read_job, read_job_record
from cluster.node.attempt_context import AttemptContext, Interruption
from cluster.node.failures import Failure, describe_failure
from cluster.node.gpus import check_gpus
from cluster.node.hard_end import HardEnd, lose
from cluster.node.leave_time import LeaveTime, expected_save_s
from cluster.node.member import Member
from cluster.node.memory_stops import say_what_follows, trained_micro_batch, with_less_memory
from cluster.node.node_group import LOOPBACK, NodeGroup, passed_notice
from cluster.node.notice import watch_for_notice
from cluster.node.ray_runtime import import_ray
from cluster.node.ray_runtime_member import RayMember
from cluster.node.stages import needs_ray, run_stages
from cluster.node.stall_watch import StallWatch
from cluster.node.standstill import TrainingProgress
from cluster.phase import PhaseMarker, read_marks
from cluster.plan import Placement
from cluster.process_tree import NODE_MARK
from cluster.recovery import ALL_DONE, StopReason
from cluster.sign_of_life import SignOfLife

logger = logging.getLogger(__name__)

LEASE_INTERVAL_S = 1.0
LEASE_S = 20.0
_LOG_LEVELS = {StopReason.SUPERSEDED: logging.WARNING, StopReason.REVIEW: logging.INFO}  # no faults of the run


class Watch(Protocol):
    """Something that looks out for the end of an attempt, in a thread of its own."""

    def stop(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True)
class NodeArguments:
    """What a machine is told by whoever starts it; all but `group.rank` and `scratch` alike on all of an attempt.

    Attributes:
        until: the stage after which this part of the run is over, where others follow on other machines; None for the
            run's last part.
        machine_started_at: since when its machine is paid for, ISO time; empty where nobody pays.
        guard: starts whatever else may end this attempt; gets the function that takes a notice, and what knows how long
            leaving takes.
        alive: called about once a second for as long as the attempt holds its lease, or sees that the head holds it.
        gone: called when the node, having lost its right to write, has to leave the hard way.
        outstayed: called with the reason when it has to because it is still there after the window of a limit or a
            cancel; its end is recorded then.
    """

    store_uri: str
    run_id: str
    attempt: int
    placement: Mapping[str, Any]
    scratch: Path
    group: NodeGroup = field(default_factory=NodeGroup)
    until: str | None = None
    machine_started_at: str = ""
    guard: Callable[[Callable[[Notice], None], LeaveTime], Watch] | None = None
    alive: Callable[[], object] = lambda: None
    gone: Callable[[], object] = lambda: None
    outstayed: Callable[[StopReason], object] = lambda _: None


def parse_arguments(argv: Sequence[str]) -> NodeArguments:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.node.main", description="Runs one attempt on this machine."
    )
    parser.add_argument("--store", required=True, help="URI of the store's root")
    parser.add_argument("--run", required=True, help="run id")
    parser.add_argument("--attempt", required=True, type=int, help="number handed out for this attempt")
    parser.add_argument("--placement", required=True, type=json.loads, help="where this is, as JSON")
    parser.add_argument("--scratch", required=True, type=Path, help="folder that goes with the node")
    parser.add_argument("--node-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--node-addresses", default=LOOPBACK, help="addresses of all machines by number, with commas")
    parser.add_argument("--ray-port", type=int, default=0, help="where machine 0's Ray answers")
    given = parser.parse_args(argv)
    group = NodeGroup(given.node_rank, tuple(given.node_addresses.split(",")), given.ray_port)
    return NodeArguments(given.store, given.run, given.attempt, given.placement, given.scratch, group)


def run_node(arguments: NodeArguments) -> StopReason:
    """Run one attempt to its end; every outcome is a stop reason, said in the end record as far as the store allows.

    A machine that is not the head takes part until the attempt is over and returns the head's reason.
    """
    if not arguments.group.is_head:
        return _take_part(arguments)
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    interruption = Interruption()
    marker = PhaseMarker(arguments.scratch)
    marker.start()
    signal.signal(signal.SIGTERM, lambda *_: interruption.notify(read_notice(arguments.scratch)))
    began = time.monotonic()
    try:
        store = Store.open(arguments.store_uri).child(arguments.run_id)
        log = AttemptLog(store, LAYOUT)
        launched = read_job_record(store)
        job = with_less_memory(job_of(launched, store), log.records(), arguments.attempt)
        if needs_ray(job):
            import_ray(arguments.group)
        _claim(log, arguments, trained_micro_batch(job))
    except Exception as exc:  # whatever it is, the exit code has to say it: there is no attempt to write it under
        failure = describe_failure(exc)
        logger.error("attempt %d did not begin: %s", arguments.attempt, failure.words, exc_info=failure.unexpected)
        return failure.reason
    leave = LeaveTime(expected_save_s(job, launched.get("num_parameters")), lambda: read_marks(arguments.scratch))
    leave.learn_from(store)
    events = EventWriter(store, attempt=arguments.attempt, writer="node")
    handler = EventLogHandler(events)
    logging.getLogger().addHandler(handler)
    lease = LeaseKeeper(
        log, arguments.attempt, interval_s=LEASE_INTERVAL_S, lease_s=LEASE_S,
        on_lost=lambda exc: lose(interruption, exc, arguments.gone), poll=_poll(store, interruption, arguments, leave),
    )  # fmt: skip
    lease.start()

    def record(failure: Failure) -> None:
        _put_end(log, arguments, failure, time.monotonic() - began)

    hard_end = HardEnd(interruption, gone=arguments.outstayed, record=record)
    hard_end.start()
    progress = TrainingProgress()
    stall_watch = StallWatch(
        progress, interruption, max_stall_min=job.limits.max_stall_min, tell=events.emit, record=record,
        is_saving=lambda: read_marks(arguments.scratch).saving is not None, gone=arguments.outstayed,
    )  # fmt: skip
    stall_watch.start()
    ctx = AttemptContext(
        run_id=arguments.run_id, attempt=arguments.attempt, job=job, world_size=_world_size(job, arguments.placement),
        layout=LAYOUT, store=store,
        store_uri=arguments.store_uri, log=log, fence=Fence(log, arguments.attempt), events=events, marker=marker,
        interruption=interruption, scratch=arguments.scratch, group=arguments.group,
        gpus_per_node=_gpus(arguments.placement), until=arguments.until, leave=leave,
        progress=progress, paid_s_per_byte=_paid_s_per_byte(launched, arguments.placement),
    )  # fmt: skip
    events.emit("attempt", number=arguments.attempt, placement=dict(arguments.placement))
    watches: list[Watch | None] = [watch_for_notice(str(arguments.placement.get("infra")), interruption.notify)]
    watches.append(arguments.guard(interruption.notify, leave) if arguments.guard else None)
    failure = say_what_follows(_run(ctx, arguments.placement.get("gpus")), job.train)
    for watch in filter(None, watches):
        watch.stop()
    lease.stop()
    record(failure)
    hard_end.stop()
    stall_watch.stop()
    logging.getLogger().removeHandler(handler)
    events.close()
    return failure.reason


def _take_part(arguments: NodeArguments) -> StopReason:
    """What a machine does that is not the head."""
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    notices: list[Notice] = []
    signal.signal(signal.SIGTERM, lambda *_: notices.append(read_notice(arguments.scratch)))
    watch_for_notice(str(arguments.placement.get("infra")), notices.append)
    try:
        store = Store.open(arguments.store_uri).child(arguments.run_id)
        job = read_job(store)
        import_ray(arguments.group)
        check_gpus(arguments.placement.get("gpus"))
    except Exception as exc:  # as in run_node: the exit code has to say it
        failure = describe_failure(exc)
        words = (arguments.group.rank, failure.words)
        logger.error("machine %d cannot take part: %s", *words, exc_info=failure.unexpected)
        return failure.reason
    ranks = _world_size(job, arguments.placement) // arguments.group.size
    ray = RayMember(num_cpus=ranks, num_gpus=_gpus(arguments.placement), group=arguments.group)
    log = AttemptLog(store, LAYOUT)
    return Member(store, log, arguments.attempt, arguments.group, ray, notices, alive=arguments.alive).run()


def _paid_s_per_byte(launched: Mapping[str, Any], placement: Mapping[str, Any]) -> float:
    return paid_s_per_byte(Placement.from_json(launched["candidates"][0]), Placement.from_json(placement))


def _world_size(job: JobSpec, placement: Mapping[str, Any]) -> int:
    ranks: int = _gpus(placement) or placement.get("workers") or job.compute.workers or 1
    return ranks * job.compute.num_nodes


def _gpus(placement: Mapping[str, Any]) -> int:
    """GPUs of one machine."""
    return int(str(placement["gpus"]).partition(":")[2] or 1) if placement.get("gpus") else 0


def _claim(log: AttemptLog, arguments: NodeArguments, micro_batch_size: int | None) -> None:
    body: dict[str, Any] = {
        "placement": dict(arguments.placement), "code_version": code_version(), "started_at": utc_now(),
        "node": os.environ.get(NODE_MARK), "addresses": list(arguments.group.addresses),
    }  # fmt: skip
    if arguments.machine_started_at:
        body["machine_started_at"] = arguments.machine_started_at
    if micro_batch_size is not None:
        body["micro_batch_size"] = micro_batch_size
    try:
        log.claim(arguments.attempt, body)
    except AlreadyExists as exc:
        raise Superseded(arguments.attempt, arguments.attempt) from exc


def _run(ctx: AttemptContext, gpus: str | None) -> Failure:
    """Run the stages; turn whatever ends them into a stop reason."""
    try:
        check_gpus(gpus)
        run_stages(ctx)
    except Exception as exc:  # the node outlives any failure of a stage just long enough to report it
        # A loss makes the stages fail in many ways; the loss is the reason, whatever came of it.
        failure = describe_failure(ctx.interruption.lost or exc)
        logger.log(
            _LOG_LEVELS.get(failure.reason, logging.ERROR),
            "attempt %d ends: %s", ctx.attempt, failure.words, exc_info=failure.unexpected,
        )  # fmt: skip
        return failure
    notice = ctx.interruption.notice
    if notice is not None and not ctx.interruption.is_done:
        return Failure(notice.reason, ctx.interruption.left_with or "left on notice, before anything was there to save")
    if ctx.until is not None:
        words = f"the stages up to {ctx.until} are done; those that follow have machines of their own"
        return Failure(StopReason.PART_DONE, words)
    return Failure(StopReason.DONE, ctx.interruption.done_with or ALL_DONE)


def _poll(store: Store, interruption: Interruption, arguments: NodeArguments, leave: LeaveTime) -> Callable[[], None]:
    """Look for what is left in the store for this attempt: a cancel, a notice that reached another of its machines."""
    watch = CancelWatch(store)
    sign = SignOfLife(store, arguments.attempt) if arguments.machine_started_at else None

    def look() -> None:
        arguments.alive()
        if watch.open_cancels():
            interruption.notify(Notice(StopReason.CANCELLED, leave.cancel_s))
        if arguments.group.size > 1 and (notice := passed_notice(store, arguments.attempt)) is not None:
            interruption.notify(notice)
        if sign is not None:
            sign.give()

    return look


def _put_end(log: AttemptLog, arguments: NodeArguments, failure: Failure, seconds: float) -> None:
    if failure.reason is StopReason.SUPERSEDED:
        return  # whoever came after has ended this attempt's record, or will
    body = {
        "stop_reason": failure.reason.value, "detail": failure.words, "retryable": failure.retryable,
        "exit_code": failure.exit_code, "seconds": round(seconds, 3), "ended_at": utc_now(), "by": "node",
        "reached": read_marks(arguments.scratch).reached,
    }  # fmt: skip
    try:
        log.put_end(arguments.attempt, body)
    except CheckpointError as exc:
        logger.warning("the end of attempt %d could not be recorded: %s", arguments.attempt, exc)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )  # fmt: skip
    return NODE_EXITS[run_node(parse_arguments(sys.argv[1:] if argv is None else argv))]


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # threads of Ray and fsspec must not keep a node alive whose work is over
