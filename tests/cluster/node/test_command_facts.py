"""What a program of the user's own writes into its progress file may be anything: what is no fact is passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.store import Store
from cluster.event_reading import read_events
from cluster.events import EventWriter
from cluster.node.command_facts import parse_fact


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (
            '{"step": 12, "total_steps": 60, "loss": 1.25}',
            {"kind": "step", "step": 12, "total_steps": 60, "loss": 1.25},
        ),
        ('{"step": 3, "loss": "1.25", "note": "warm"}', {"kind": "step", "step": 3, "note": "warm"}),
        ('{"step": true, "mfu": null}', {"kind": "step", "mfu": None}),
        ('{"t": 17, "step": 4}', {"kind": "step", "step": 4}),
        ('{"step": 12.0, "loss": 2.0}', {"kind": "step", "step": 12, "loss": 2.0}),
        ('{"step": 3, "loss": 1' + "0" * 400 + "}", {"kind": "step", "step": 3}),
        ("[" * 100_000, None),
        ('{"kind": "saving", "position": null}', {"kind": "saving", "position": None}),
        (
            '{"kind": "save", "position": 5, "seconds": 1, "stall_s": 0.1, "bytes": 9}',
            {"kind": "save", "position": 5, "seconds": 1, "stall_s": 0.1, "bytes": 9},
        ),
        ('{"kind": "save", "position": 5}', None),
        ('{"kind": 7}', None),
        ("[1]", None),
        ("12 of 60", None),
        ("", None),
    ],
)
def test_a_line_is_a_fact_or_nothing(line: str, fact: dict[str, object] | None) -> None:
    assert parse_fact(line.encode()) == fact


def test_a_time_of_the_programs_own_does_not_become_the_events(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    events = EventWriter(store, 1, "node")
    for line in (b'{"step": 1}', b'{"step": 2, "t": 17}'):
        fact = parse_fact(line)
        assert fact is not None
        events.emit(**fact)
    events.close()
    assert [event.fields["step"] for event in read_events(store)] == [1, 2]  # sorted by their times, which are text
