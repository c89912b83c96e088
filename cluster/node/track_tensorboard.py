"""TensorBoard's event files, written to the run's store: `tensorboard --logdir <store>/<run>/tracking/tensorboard`.

    tracking/tensorboard/events.out.tfevents.000002-000001     attempt 2, part 1

TensorBoard reads files in the order of their names, which are numbers of attempts and not times. An attempt's first
file begins with a session start at step 0, at which TensorBoard drops what earlier files said; the attempt tells the
whole run again.
"""

from __future__ import annotations

import io
from typing import Any

from checkpoints.store import Store
from cluster.node.tracking import Point

FOLDER = "tracking/tensorboard"
PART_BYTES = 2**20
"""A part that has grown to this is left alone: what changes is put again whole, and stays small by this."""


class TensorBoardTracker:
    """The protocol's docstrings (tracking.py) hold."""

    def __init__(self, store: Store, attempt: int, *, part_bytes: int = PART_BYTES) -> None:
        self._store, self._attempt, self._part_bytes = store, attempt, part_bytes
        self._part, self._put_bytes, self._newest_s = 0, 0, 0.0
        self._begin_part()

    def add(self, point: Point) -> None:
        """As the protocol says."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._buffer.tell() >= self._part_bytes:
            self.flush()
            self._begin_part()
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
        self._write(wall_time=point.at_s, step=point.step, summary=Summary(value=values))
        self._newest_s = max(self._newest_s, point.at_s)

    def flush(self) -> None:
        """As the protocol says."""
        data = self._buffer.getvalue()
        if len(data) > self._put_bytes:
            self._store.put(f"{FOLDER}/events.out.tfevents.{self._attempt:06d}-{self._part:06d}", data)
            self._put_bytes = len(data)

    def close(self) -> None:
        """As the protocol says."""
        self.flush()

    def _begin_part(self) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._part, self._put_bytes = self._part + 1, 0
        self._buffer = io.BytesIO()
        self._records: Any = RecordWriter(self._buffer)
        self._write(wall_time=self._newest_s, step=0, file_version="brain.Event:2")
        if self._part == 1:
            self._write(wall_time=self._newest_s, step=0, session_log=SessionLog(status=SessionLog.START))

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(**fields).SerializeToString())
