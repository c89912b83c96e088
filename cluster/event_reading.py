"""A run's events read from its store, from any laptop: as they come, or those that there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from checkpoints.errors import ObjectMissing
from checkpoints.store import Store
from cluster.events import Event, batch_key, last_numbers

_READ_THREADS: Final = 16


class EventReader:
    """Reads a run's events as they come: one listing now and then, and one read per batch."""

    def __init__(self, store: Store, *, relist_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the run's store; `relist_s` is how often new writers are looked for."""
        self._store, self._relist_s, self._clock = store, relist_s, clock
        self._read: dict[tuple[int, str], int] = {}
        self._listed_at: float | None = None

    def poll(self, *, relist: bool = False) -> list[Event]:
        """Return the events that came since the last call, oldest first; `relist` looks for new writers right now."""
        now = self._clock()
        events: list[Event] = []
        if relist or not self._read or self._listed_at is None or now - self._listed_at >= self._relist_s:
            self._listed_at = now
            for name, last in sorted(last_numbers(self._store).items()):
                events += _read_batches(self._store, name, range(self._read.get(name, 0) + 1, last + 1))
                self._read[name] = max(last, self._read.get(name, 0))
        newest = max((attempt for attempt, _ in self._read), default=0)
        for name in list(self._read):
            # An older attempt's node has nothing more to say; if a zombie has, the next listing finds it.
            if name[0] == newest or name[1] != "node":
                while self._next(name, events):
                    pass
        for event in events:
            if event.kind == "attempt" and event.fields.get("state") == "started":
                self._read.setdefault((int(event.fields["number"]), "node"), 0)
        return sorted(events, key=lambda event: event.t)

    def follow(self, *, poll_s: float = 1.0, until: Callable[[bool], bool]) -> Iterator[Event]:
        """Yield events as they come, the old ones first, until `until` is true and nothing more is there.

        `until` is told whether an `end` is the newest word of the run so far. That `end` is held back until nothing
        else is left: batches of other writers may be read after it.
        """
        end: Event | None = None
        while True:
            over = until(end is not None)  # asked before the poll, so that nothing written before it is missed
            events = self.poll(relist=over)
            for event in events:
                if end is not None and event.t > end.t:
                    yield end
                    end = None
                if event.kind == "end":
                    end = event
                else:
                    yield event
            if over and not events:
                break
            if not over:
                time.sleep(poll_s)
        if end is not None:
            yield end

    def _next(self, name: tuple[int, str], events: list[Event]) -> bool:
        number = self._read[name] + 1
        try:
            events.extend(_read_batch(self._store, name, number))
        except ObjectMissing:
            return False
        self._read[name] = number
        return True


def read_events(store: Store, *, newest_batches: int | None = None) -> list[Event]:
    """Read a run's events, oldest first; with `newest_batches` only so many batches of each writer's last attempt."""
    events: list[Event] = []
    last = last_numbers(store)
    for (attempt, writer), count in sorted(last.items()):
        first = 1
        if newest_batches is not None:
            if attempt != max(number for number, name in last if name == writer):
                continue
            first = max(count - newest_batches + 1, 1)
        events += _read_batches(store, (attempt, writer), range(first, count + 1))
    return sorted(events, key=lambda event: event.t)


def read_turns(store: Store, *, until: Collection[str]) -> list[Event]:
    """Read of every attempt how it began, up to its first event of a kind in `until`, and its last batch; oldest first.

    Of the supervisor everything is read. That is what a recovery is timed by, and a small part of a long run's events.
    """
    found: list[Event] = []
    for name, count in sorted(last_numbers(store).items()):
        if name[1] == "supervisor":
            found += _read_batches(store, name, range(1, count + 1))
            continue
        for first in range(1, count + 1, _READ_THREADS):
            batch = _read_batches(store, name, range(first, min(first + _READ_THREADS, count + 1)))
            found += batch
            if any(event.kind in until for event in batch):
                break
        if first + _READ_THREADS <= count:
            found += _read_batches(store, name, range(count, count + 1))
    return sorted(found, key=lambda event: event.t)


def read_back(store: Store, name: tuple[int, str], last: int) -> Iterator[list[Event]]:
    """Yield the events of one attempt's writer from the newest batch back, several batches at a time.

    Args:
        name: attempt and writer; `last`: its newest batch, as `last_numbers` has it.
    """
    for end in range(last, 0, -_READ_THREADS):
        yield _read_batches(store, name, range(max(end - _READ_THREADS, 0) + 1, end + 1))


def _read_batches(store: Store, name: tuple[int, str], numbers: range) -> list[Event]:
    """Read batches that were listed, several at a time: a long run has thousands."""

    def read(number: int) -> list[Event]:
        try:
            return _read_batch(store, name, number)
        except ObjectMissing:  # the run is being removed
            return []

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return [event for batch in pool.map(read, numbers) for event in batch]


def _read_batch(store: Store, name: tuple[int, str], number: int) -> list[Event]:
    """Read one batch; a damaged one is named in the log and has no events. Raises ObjectMissing."""
    body = store.get_record_if_whole(batch_key(*name, number), advice="Going on without what it told.")
    if body is None:
        return []
    events = []
    for one in body["events"]:
        fields = {key: value for key, value in one.items() if key not in ("t", "kind")}
        events.append(Event(one["t"], one["kind"], name[0], name[1], fields))
    if body.get("dropped"):
        first = events[0].t if events else ""
        text = f"{body['dropped']} events were dropped while the store did not answer"
        events.insert(0, Event(first, "log", name[0], name[1], {"level": "warning", "message": text}))
    return events
