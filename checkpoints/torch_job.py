"""SaveJob: what the thread behind a save needs, and the storing of this rank's part by it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from checkpoints.torch_overlap import LateCopy
from checkpoints.torch_plan import SaveLayout
from checkpoints.torch_snapshot import Snapshot
from checkpoints.torch_state import STATE_OBJECT
from checkpoints.writer import CommitWriter

SAVE_THREADS = 4
"""Objects of one rank that are stored at a time."""


@dataclass(frozen=True)
class SaveJob:
    """One save of one rank; of what training works on, only what `late` holds, until that has run.

    `record` is state.json on rank 0, nothing elsewhere; `started` and `blocked_s` are of the call, by the monotonic
    clock; `problem` is why there is no snapshot.
    """

    position: int
    layout: SaveLayout
    snapshot: Snapshot
    late: LateCopy
    record: bytes
    meta: Mapping[str, Any]
    fingerprint: str
    started: float
    blocked_s: float
    problem: Exception | None = None

    @property
    def stall_s(self) -> float:
        """How long training stood still: in `save`, and before the update that waited for the copy."""
        return self.blocked_s + self.late.waited_s

    def copy(self) -> Exception | None:
        """Make the copy that was put off; returns what kept the snapshot from being made, then or in `save`."""
        try:
            self.late.run()
        except Exception as exc:  # noqa: BLE001 - the other ranks store by now: they learn of it as of any failure
            return self.problem or exc
        return self.problem

    def store(self, writer: CommitWriter) -> None:
        """Store this rank's objects. After one that could not be stored no other is begun: there is nothing to commit
        any more, and a store that is away is waited for once, not once for each of thousands.
        """
        failed = threading.Event()

        def put(name: str, data: bytes | memoryview, cuts: Sequence[int] = ()) -> None:
            if failed.is_set():
                return
            try:
                writer.put(name, data, cuts=cuts)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(SAVE_THREADS, thread_name_prefix="store") as pool:
            jobs = [
                pool.submit(put, planned.name, self.snapshot.bytes_of(planned.name), planned.cuts)
                for planned in self.layout.objects
            ]
            if self.record:
                jobs.append(pool.submit(put, STATE_OBJECT, self.record))
            for job in jobs:
                job.result()
