"""What a run tells while it runs: small dated facts, written in batches to its store (read by event_reading.py).

An event is JSON, `{"t": ISO time in UTC, "kind": ..., ...}`. Batches lie at `events/<attempt>-<writer>-<seq>.json` and
are put once, numbered without gaps from 1 per attempt and writer, so a reader fetches the next number instead of
listing everything again. Events are information for people: nothing decides by them, and losing some harms nothing.

Kinds: `log` (level, logger, message), `phase` (phase), `attempt` (the supervisor's with state: started, adopted,
refused or ended; the node's with placement), `ray` (seconds: its start), `ready` (seconds: the training workers'
imports), `base` (stage, position: what the attempt goes on from), `generation` (rows, accept_rate, drops, requests,
usd, tokens; waiting, waiting_since and next_try_at while the teacher answers nobody), `budget` (what is left does not
pay for training: limit_usd, teacher_usd, machines_usd, left_usd, training_usd), `step` (total_steps, and StepMetrics
of alpaca_jobs/training/metrics.py; runs of earlier versions lack peak_memory_bytes and data_wait_s; while a save is
under way its position as saving, and saving_since), `saving` (position: its save begins), `save` (position, stall_s,
seconds, bytes, stored_bytes, committed, lag_steps, interval_steps, interval_by), `eval` (step, loss, num_rows,
target_tokens, seconds, is_best, best_step, best_loss), `stall` (no step for long: seconds, usual_s, step, words),
`decision` (action, words), `end` (exit_code, reason, words).
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from checkpoints.errors import AlreadyExists, CheckpointError
from checkpoints.store import Store

logger = logging.getLogger(__name__)

_KEY: Final = re.compile(r"events/(\d{6})-([A-Za-z0-9_]+)-(\d{6})\.json")
_BATCH_EVENTS: Final = 500  # one object stays below about 100 KB


@dataclass(frozen=True)
class Event:
    """One fact. `t` is ISO 8601 in UTC with milliseconds, so that it sorts as text."""

    t: str
    kind: str
    attempt: int
    writer: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """One flat object, as `logs --json` prints it."""
        return {"t": self.t, "kind": self.kind, "attempt": self.attempt, "writer": self.writer, **self.fields}


def utc_now() -> str:
    """Return the time as events carry it: `2026-11-20T23:50:28.123Z`."""
    return iso_time(datetime.now(UTC).timestamp())


def iso_time(at_s: float) -> str:
    """Return seconds since 1970 as events carry them."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_of(t: str) -> float:
    """Return an event's time as seconds since 1970."""
    return datetime.fromisoformat(t).timestamp()


def saving_fields(position: int | None) -> dict[str, Any]:
    """What the events of steps carry from now on, as the save of a position has begun; with None it has ended."""
    return {} if position is None else {"saving": position, "saving_since": utc_now()}


def batch_key(attempt: int, writer: str, number: int) -> str:
    """Return where the batch lies: `events/000002-node-000017.json`."""
    return f"events/{attempt:06d}-{writer}-{number:06d}.json"


def last_numbers(store: Store) -> dict[tuple[int, str], int]:
    """Return how many batches there are of each attempt and writer, by a listing."""
    last: dict[tuple[int, str], int] = {}
    for key in store.list("events/"):
        if match := _KEY.fullmatch(key):
            name = (int(match[1]), match[2])
            last[name] = max(last.get(name, 0), int(match[3]))
    return last


class EventWriter:
    """Collects events and writes them in the background; the caller never waits for the store.

    A batch that the store refuses is kept and tried again. What does not fit the bounded buffer meanwhile is dropped,
    oldest first, and the next batch says how many were.
    """

    def __init__(
        self, store: Store, attempt: int, writer: str, *, flush_s: float = 1.0, max_buffered: int = 10_000
    ) -> None:
        """Start the writing thread.

        Args:
            store: the run's store.
            attempt, writer: name the batches; the writer is a word such as `node` or `supervisor`.
            flush_s: longest time between an event and the try to write it.
            max_buffered: events held back while the store does not answer.
        """
        self._store, self._attempt, self._writer, self._flush_s = store, attempt, writer, flush_s
        self._buffer: deque[dict[str, Any]] = deque()
        self._max_buffered = max_buffered
        self._dropped = 0
        self._number: int | None = None
        self._wake = threading.Condition()
        self._closing = False
        self._flushing = False
        self._thread = threading.Thread(target=self._run, name=f"events-{writer}", daemon=True)
        self._thread.start()

    def emit(self, kind: str, **fields: Any) -> None:
        """Take one event (fields are JSON values); returns at once and never raises for the store's sake."""
        with self._wake:
            if len(self._buffer) >= self._max_buffered:
                self._buffer.popleft()
                self._dropped += 1
            self._buffer.append({"t": utc_now(), "kind": kind, **fields})

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Write what is there now; False if the store did not take all of it within the time."""
        with self._wake:
            self._flushing = True
            self._wake.notify_all()
            return self._wake.wait_for(lambda: not self._buffer, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is left, for at most `timeout_s`; a second call does nothing."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning(
                "the store did not take the last events of attempt %d within %.0f s", self._attempt, timeout_s
            )

    def is_own_thread(self) -> bool:
        """Whether the caller is the writing thread, whose own log records must not become events."""
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        failures = 0
        while True:
            with self._wake:
                # A long run's batches get fewer and larger, so that its listing stays short: 3,300 after 6 hours.
                pause_s = self._flush_s * min(max(2.0**failures, 1 + (self._number or 0) / 300), 10.0)
                self._wake.wait_for(lambda: self._closing or self._flushing, pause_s)
                closing, self._flushing = self._closing, False
            failures = 0 if self._write_all() else failures + 1
            # A closing writer stops at the first failure: the store has its own bounded retries behind it.
            if closing and (failures or not self._buffer):
                return

    def _write_all(self) -> bool:
        while True:
            with self._wake:
                batch = [self._buffer[i] for i in range(min(len(self._buffer), _BATCH_EVENTS))]
                dropped = self._dropped
            if not batch:
                return True
            body: dict[str, Any] = {"attempt": self._attempt, "writer": self._writer, "events": batch}
            if dropped:
                body["dropped"] = dropped
            try:
                self._put(body)
            except CheckpointError as exc:
                logger.warning("events wait for the store: %s", exc)
                return False
            with self._wake:
                # The buffer may have dropped some of the batch's events while it was being written.
                gone = max(len(batch) - (self._dropped - dropped), 0)
                for _ in range(min(gone, len(self._buffer))):
                    self._buffer.popleft()
                self._dropped -= dropped
                self._wake.notify_all()

    def _put(self, body: Mapping[str, Any]) -> None:
        if self._number is None:  # a supervisor started again goes on where the one before stopped
            self._number = last_numbers(self._store).get((self._attempt, self._writer), 0)
        while True:
            try:
                self._store.put_once(batch_key(self._attempt, self._writer, self._number + 1), body)
            except AlreadyExists:
                self._number += 1
                continue
            self._number += 1
            return


class EventLogHandler(logging.Handler):
    """Turns log records into events of kind `log`, so that a node's talk can be read from any laptop."""

    def __init__(self, writer: EventWriter, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._events = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on, traceback included."""
        if self._events.is_own_thread():
            return
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        self._events.emit("log", level=record.levelname.lower(), logger=record.name, message=message)
