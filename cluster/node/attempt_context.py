"""What every stage of one attempt works with: the job, the store, the fence, the notice, and where to report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef, Layout
from checkpoints.store import Store
from cluster.errors import NodeLost
from cluster.events import EventWriter
from cluster.exits import Notice
from cluster.node.leave_time import LeaveTime
from cluster.node.node_group import NodeGroup
from cluster.node.standstill import TrainingProgress
from cluster.phase import PhaseMarker


class Interruption:
    """What can end an attempt from outside: a notice (leave within a window), or a loss: of the right to write, or of
    one of its machines.

    Written by the signal handler, the notice watch and the lease's thread, read by the stages; the first of each kind
    stays.

    Attributes:
        left_with: what the stage that a notice ended could save, and what not, in words; empty before.
        done_with: why training was over before its last step, in words; empty if it was not.
        is_done: whether the model is committed; a notice that came meanwhile interrupts nothing any more.
    """

    def __init__(self) -> None:
        self.left_with = ""
        self.done_with = ""
        self.is_done = False
        self._notice: Notice | None = None
        self._until = 0.0
        self._lost: CheckpointError | NodeLost | None = None

    def notify(self, notice: Notice) -> None:
        """Take a notice; its window starts now, on this process's monotonic clock."""
        if self._notice is None:
            self._until = time.monotonic() + notice.window_s
            self._notice = notice

    def lose(self, error: CheckpointError | NodeLost) -> None:
        """Take the news that this attempt cannot go on."""
        if self._lost is None:
            self._lost = error

    @property
    def lost(self) -> CheckpointError | NodeLost | None:
        """What took this attempt's right to write away (Superseded, LeaseLost, ...) or a machine, if anything did."""
        return self._lost

    @property
    def notice(self) -> Notice | None:
        """The notice, if one came."""
        return self._notice

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the machine goes, or None without a notice."""
        return None if self._notice is None else max(0.0, self._until - time.monotonic())

    def check(self) -> None:
        """Raise `lost`, if there is anything to raise."""
        if self._lost is not None:
            raise self._lost


@dataclass(frozen=True)
class AttemptContext:
    """One attempt, as its stages see it.

    Attributes:
        world_size: training ranks of this attempt.
        store: the run's own folder of the store.
        store_uri: the store's root, for processes that have to open it again.
        counting: commits that count for this attempt's start, newest first.
        scratch: a folder on this machine, gone with the node.
        group: the machines of this attempt; this one is the head.
        gpus_per_node: GPUs of each machine; one training rank takes one.
        until: the stage after which this part of the run is over and another begins elsewhere; None for the last part.
        paid_s_per_byte: what sending a byte to the store is billed from here (cluster/egress.py).
        leave: hears what saves and steps take.
        progress: hears them too, to see whether training goes on.
    """

    run_id: str
    attempt: int
    job: JobSpec
    world_size: int
    layout: Layout
    store: Store
    store_uri: str
    log: AttemptLog
    fence: Fence
    events: EventWriter
    marker: PhaseMarker
    interruption: Interruption
    scratch: Path
    counting: Sequence[CommitRef] = field(default_factory=tuple)
    group: NodeGroup = field(default_factory=NodeGroup)
    gpus_per_node: int = 0
    until: str | None = None
    paid_s_per_byte: float = 0.0
    leave: LeaveTime = field(default_factory=LeaveTime)
    progress: TrainingProgress = field(default_factory=TrainingProgress)

    def told(self, kind: str, fact: Mapping[str, Any]) -> None:
        """Pass a fact of training on to whoever measures."""
        self.leave.told(kind, fact)
        self.progress.told(kind, fact)

    def commits(self, stage: str) -> list[CommitRef]:
        """Commits of a stage that count at this attempt's start, newest first."""
        return [ref for ref in self.counting if ref.stage == stage]
