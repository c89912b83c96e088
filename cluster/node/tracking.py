"""Tracking a run elsewhere as well (`train.track`): numbers of steps, evaluations and saves, one curve over recoveries.

The node's head passes facts on and never waits: a thread gives them to the trackers and brings what they wrote to the
run's store. An attempt that goes on after step 30 tells steps 1 to 30 again as they count, from the run's own events
(losses and evaluations that no event tells, from the checkpoint), and then its own: whatever an earlier attempt tracked
beyond step 30, and what a kill kept it from tracking, is put right by that.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from alpaca_jobs.training.evaluation import Evaluation, read_evaluations
from checkpoints.errors import CheckpointError
from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord
from checkpoints.reader import CommitReader
from cluster.event_reading import read_events
from cluster.events import Event, seconds_of, utc_now
from cluster.node.attempt_context import AttemptContext

logger = logging.getLogger(__name__)

FLUSH_S = 10.0
"""What was tracked reaches the store this often."""

_VALUES: Mapping[str, Mapping[str, str]] = {
    "step": {
        "loss": "train/loss", "learning_rate": "train/learning_rate", "grad_norm": "train/grad_norm",
        "tokens_per_second": "train/tokens_per_second", "mfu": "train/mfu",
        "peak_memory_bytes": "train/peak_memory_bytes", "data_wait_s": "train/data_wait_s",
    },
    "eval": {"loss": "eval/loss", "seconds": "eval/seconds"},
    "save": {"seconds": "checkpoint/seconds", "stall_s": "checkpoint/stall_s", "stored_bytes": "checkpoint/bytes"},
}  # fmt: skip
"""Kind of event -> its field -> the name it is tracked under."""


@dataclass(frozen=True)
class Point:
    """Numbers that belong to one step, by the names they are tracked under; `at_s` is seconds since 1970."""

    step: int
    at_s: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """One tracker in one attempt, used by one thread; it tells the whole run from step 1 on, in order of steps."""

    def add(self, point: Point) -> None:
        """Take one point."""
        ...

    def flush(self) -> None:
        """Bring what is there to where it survives the machine. Raises CheckpointError: the store did not take it."""
        ...

    def close(self) -> None:
        """Flush, and end."""
        ...


def point_of(kind: str, fields: Mapping[str, Any], *, at_s: float) -> Point | None:
    """What is tracked of an event; None for one of another kind, or without numbers."""
    step = fields.get("position" if kind == "save" else "step")
    values = {
        tag: float(fields[name])
        for name, tag in _VALUES.get(kind, {}).items()
        if isinstance(fields.get(name), int | float)
    }
    return (
        Point(int(step), at_s, values) if isinstance(step, int) and values and fields.get("committed", True) else None
    )


def history(
    events: Sequence[Event],
    records: Sequence[AttemptRecord],
    *,
    base: CommitRef,
    losses: Sequence[float] = (),
    evaluations: Sequence[Evaluation] = (),
) -> list[Point]:
    """The points up to a training commit as they count: each step once, as told by the attempt whose step it is. Pure.

    Args:
        events: of all attempts so far.
        losses: of the steps from 1 on; where no event tells a step (its machine died first), its loss is taken.
        evaluations: all up to the commit; likewise.
    """
    bases = {record.number: record.base for record in records}
    upto: dict[int, tuple[int, int]] = {}  # attempt -> its steps that count: after the first, up to the second
    link: CommitRef | None = base
    while link is not None and link.stage == base.stage and link.attempt not in upto:
        before = bases.get(link.attempt)
        first = before.position if before is not None and before.stage == base.stage else 0
        upto[link.attempt] = (first, link.position)
        link = before
    found: dict[tuple[str, int], Point] = {}
    for event in events:
        first, last = upto.get(event.attempt, (0, 0))
        point = point_of(event.kind, event.fields, at_s=seconds_of(event.t))
        # An evaluation or a save that a recovery made up for belongs to the step it began with.
        if point is not None and (first if event.kind == "step" else first - 1) < point.step <= last:
            found[event.kind, point.step] = point
    at_s = min((point.at_s for point in found.values()), default=0.0)
    for step, loss in enumerate(losses[: base.position], 1):
        found.setdefault(("step", step), Point(step, at_s, {"train/loss": loss}))
    for step, loss in evaluations:
        if step <= base.position:
            found.setdefault(("eval", step), Point(step, at_s, {"eval/loss": loss}))
    return sorted(found.values(), key=lambda point: point.step)


class Tracking:
    """Trackers of one attempt and the thread that feeds them; nothing that goes wrong here harms the run.

    Args:
        make: makes the trackers, in that thread, since their libraries take seconds to import.
    """

    def __init__(self, ctx: AttemptContext, make: Callable[[], Sequence[Tracker]], *, flush_s: float = FLUSH_S) -> None:
        self._ctx, self._make, self._flush_s = ctx, make, flush_s
        self._facts: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def begin(self, base: CommitRef | None) -> None:
        """The attempt's training goes on from this commit, or from the start."""
        self._facts.put(("begin", base))

    def told(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take an event that has just been emitted; returns at once."""
        point = point_of(kind, fields, at_s=seconds_of(utc_now()))
        if point is not None:
            self._facts.put(("point", point))

    def close(self, timeout_s: float = 10.0) -> None:
        """Bring everything to where it survives, for at most this long."""
        self._facts.put(("close", None))
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("tracking did not end within %.0f s; the run is not affected", timeout_s)

    def _run(self) -> None:
        try:
            trackers = self._make()
            self._feed(trackers)
        except Exception:  # a tracker is somebody else's code, and the run is worth more than its curve
            logger.exception("tracking stopped; the run goes on without it")

    def _feed(self, trackers: Sequence[Tracker]) -> None:
        dirty = False
        while True:
            try:
                what, value = self._facts.get(timeout=self._flush_s if dirty else None)
            except queue.Empty:
                dirty = not self._flush(trackers)
                continue
            if what == "close":
                for tracker in trackers:
                    tracker.close()
                return
            for point in self._history(value) if what == "begin" else [value]:
                for tracker in trackers:
                    tracker.add(point)
                dirty = True

    def _flush(self, trackers: Sequence[Tracker]) -> bool:
        try:
            for tracker in trackers:
                tracker.flush()
        except CheckpointError as exc:
            logger.warning("what was tracked waits for the store: %s", exc)
            return False
        return True

    def _history(self, base: CommitRef | None) -> list[Point]:
        if base is None:
            return []
        meta = CommitReader.open(self._ctx.store, self._ctx.layout, base).manifest.meta
        losses = [float.fromhex(text) for text in meta.get("losses", {}).get("hex", ())]
        events, records = read_events(self._ctx.store), self._ctx.log.records()
        return history(events, records, base=base, losses=losses, evaluations=read_evaluations(meta))
