"""Events reach every reader, in order, and never cost the job anything when the store fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import StoreUnreachable
from checkpoints.store import Store
from cluster.event_reading import EventReader, read_events, read_turns
from cluster.events import Event, EventLogHandler, EventWriter, batch_key, utc_now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"file://{tmp_path}")


class Unwilling(Store):
    """Refuses to put anything while `refusing`; lists how many gets and listings there were."""

    refusing = False
    listings = 0

    def put_once(self, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.refusing:
            raise StoreUnreachable("the store is away")
        return super().put_once(key, body)

    def list(self, prefix: str = "") -> list[str]:
        self.listings += 1
        return super().list(prefix)


@pytest.fixture
def unwilling(store: Store) -> Unwilling:
    return Unwilling(store._driver)


def steps(events: list[Event]) -> list[int]:
    return [event.fields["step"] for event in events if event.kind == "step"]


def test_what_was_written_is_read_with_its_fields(store: Store) -> None:
    before = utc_now()
    writer = EventWriter(store, 2, "node")
    writer.emit("step", step=7, loss=0.5)
    writer.close()
    (event,) = read_events(store)
    assert store.list("events/") == ["events/000002-node-000001.json"] == [batch_key(2, "node", 1)]
    assert (event.kind, event.attempt, event.writer, event.fields) == ("step", 2, "node", {"step": 7, "loss": 0.5})
    assert before <= event.t <= utc_now()
    assert event.to_json() == {
        "t": event.t, "kind": "step", "attempt": 2, "writer": "node", "step": 7, "loss": 0.5,
    }  # fmt: skip


def test_a_flush_makes_everything_visible_and_close_twice_is_fine(store: Store) -> None:
    writer = EventWriter(store, 1, "node", flush_s=60)
    for step in range(1200):
        writer.emit("step", step=step)
    assert writer.flush()
    assert steps(read_events(store)) == list(range(1200))
    assert len(store.list("events/")) == 3
    writer.close()
    writer.close()


def test_a_writer_of_the_same_name_goes_on_where_the_last_one_stopped(store: Store) -> None:
    for step in (1, 2, 3):
        writer = EventWriter(store, 1, "supervisor")
        writer.emit("step", step=step)
        writer.close()
    assert len(store.list("events/")) == 3
    assert steps(read_events(store)) == [1, 2, 3]


def test_two_writers_of_one_name_at_once_lose_nothing(store: Store) -> None:
    writers = [EventWriter(store, 1, "supervisor", flush_s=0.01) for _ in range(2)]
    for step in range(40):
        writers[step % 2].emit("step", step=step)
        time.sleep(0.002)
    for writer in writers:
        writer.close()
    assert sorted(steps(read_events(store))) == list(range(40))


def test_a_store_that_fails_for_a_while_costs_nothing(unwilling: Unwilling, caplog: pytest.LogCaptureFixture) -> None:
    unwilling.refusing = True
    writer = EventWriter(unwilling, 1, "node", flush_s=0.01)
    began = time.monotonic()
    for step in range(50):
        writer.emit("step", step=step)
    assert time.monotonic() - began < 0.1
    assert not writer.flush(timeout_s=0.1)
    assert "events wait for the store: the store is away" in caplog.text
    unwilling.refusing = False
    writer.close()
    assert steps(read_events(unwilling)) == list(range(50))


def test_a_full_buffer_drops_the_oldest_and_says_so(unwilling: Unwilling) -> None:
    unwilling.refusing = True
    writer = EventWriter(unwilling, 1, "node", flush_s=0.01, max_buffered=10)
    for step in range(25):
        writer.emit("step", step=step)
    unwilling.refusing = False
    writer.close()
    events = read_events(unwilling)
    assert steps(events) == list(range(15, 25))
    assert events[0].fields["message"] == "15 events were dropped while the store did not answer"


def test_closing_before_a_dead_store_is_bounded(unwilling: Unwilling) -> None:
    unwilling.refusing = True
    writer = EventWriter(unwilling, 1, "node", flush_s=60)
    writer.emit("step", step=1)
    began = time.monotonic()
    writer.close(timeout_s=5)
    assert time.monotonic() - began < 1


def test_log_records_become_events_but_not_those_of_writing_them(unwilling: Unwilling) -> None:
    writer = EventWriter(unwilling, 1, "node", flush_s=0.01)
    handler = EventLogHandler(writer)
    log = logging.getLogger()
    log.addHandler(handler)
    try:
        unwilling.refusing = True
        logging.getLogger("alpaca").warning("loss is %.1f", 2.5)
        try:
            raise ValueError("seven")
        except ValueError:
            logging.getLogger("alpaca").exception("it broke")
        writer.flush(timeout_s=0.1)  # its own thread warns meanwhile
        unwilling.refusing = False
    finally:
        log.removeHandler(handler)
        writer.close()
    first, second = read_events(unwilling)
    assert first.fields == {"level": "warning", "logger": "alpaca", "message": "loss is 2.5"}
    assert second.fields["message"].startswith("it broke\nTraceback")
    assert second.fields["message"].endswith("ValueError: seven")


def test_a_reader_gets_what_is_new_and_lists_seldom(unwilling: Unwilling) -> None:
    now = [0.0]
    writer = EventWriter(unwilling, 1, "node")
    writer.emit("step", step=1)
    writer.flush()
    reader = EventReader(unwilling, relist_s=5, clock=lambda: now[0])
    assert steps(reader.poll()) == [1]
    unwilling.listings = 0
    assert reader.poll() == []
    writer.emit("step", step=2)
    writer.flush()
    assert steps(reader.poll()) == [2]
    assert unwilling.listings == 0
    other = EventWriter(unwilling, 2, "node")
    other.emit("step", step=3)
    other.close()
    assert reader.poll() == []
    now[0] = 5.0
    assert steps(reader.poll()) == [3]
    assert unwilling.listings == 1 + 1  # the reader's, and the second writer's own
    writer.close()


def test_following_ends_with_the_end_even_if_another_writer_was_read_later(store: Store) -> None:
    supervisor = EventWriter(store, 1, "supervisor")
    supervisor.emit("attempt", state="started", number=1)
    supervisor.emit("end", exit_code=3)
    time.sleep(0.002)
    supervisor.emit("attempt", state="started", number=2)  # it was resumed
    late = EventWriter(store, 1, "late", flush_s=60)
    late.emit("step", step=1)
    time.sleep(0.002)
    supervisor.emit("end", exit_code=0)
    supervisor.close()
    heard: list[bool] = []

    def until(has_ended: bool) -> bool:
        heard.append(has_ended)
        if len(heard) == 2:
            late.close()
        return len(heard) > 2

    events = list(EventReader(store).follow(poll_s=0.01, until=until))
    assert [event.kind for event in events] == ["attempt", "end", "attempt", "step", "end"]
    assert events[-1].fields["exit_code"] == 0
    assert heard[:2] == [False, True]


def test_the_newest_batches_alone_are_read_when_asked(store: Store) -> None:
    for attempt in (1, 2):
        writer = EventWriter(store, attempt, "node", flush_s=60)
        for step in range(4):
            writer.emit("step", step=10 * attempt + step)
            writer.flush()
        writer.close()
    assert steps(read_events(store, newest_batches=2)) == [22, 23]


def test_of_every_attempt_its_start_and_its_end_are_read(store: Store) -> None:
    for attempt in (1, 2):
        writer = EventWriter(store, attempt, "node", flush_s=60)
        for number in range(50):
            writer.emit("step" if number > 3 else "base", step=100 * attempt + number)
            writer.flush()
        writer.close()
    supervisor = EventWriter(store, 1, "supervisor", flush_s=60)
    for _ in range(20):
        supervisor.emit("decision", action="wait")
        supervisor.flush()
    supervisor.close()
    found = read_turns(store, until={"step"})
    assert sum(event.kind == "decision" for event in found) == 20
    assert steps(found) == [*range(104, 116), 149, *range(204, 216), 249]  # 16 batches at a time, and the last one
    assert [event.t for event in found] == sorted(event.t for event in found)
    assert len(read_turns(store, until={"nothing"})) == len(read_events(store))
