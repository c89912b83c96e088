"""What the saves behind a run's commits took, from its events: read from the newest back, no further than needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from checkpoints.keys import CommitRef
from checkpoints.store import Store
from cluster.event_reading import read_back
from cluster.events import last_numbers


def told_saves(store: Store, refs: Collection[CommitRef]) -> dict[CommitRef, Mapping[str, Any]]:
    """Find the `save` events of training commits (fields as in cluster/events.py).

    A commit that no event tells of is left out: its machine died before it could say so, or the event was lost.
    """
    found: dict[CommitRef, Mapping[str, Any]] = {}
    trained = [ref for ref in refs if ref.stage == "train"]
    last = last_numbers(store) if trained else {}
    for attempt in {ref.attempt for ref in trained}:
        wanted = {ref.position: ref for ref in trained if ref.attempt == attempt}
        for events in read_back(store, (attempt, "node"), last.get((attempt, "node"), 0)):
            for event in events:
                if event.kind == "save" and event.fields.get("committed", True):
                    ref = wanted.pop(event.fields["position"], None)
                    found |= {} if ref is None else {ref: event.fields}
            # A save is told after its step: events from that step back say nothing of it.
            first_step = min((event.fields["step"] for event in events if event.kind == "step"), default=None)
            if first_step is not None:
                wanted = {position: ref for position, ref in wanted.items() if position < first_step}
            if not wanted:
                break
    return found
