"""What a run has cost: machines by price and time, the teacher by what its nodes told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.events import Event
from cluster.plan import Placement


def placement_of(claim: Mapping[str, Any] | None) -> Placement | None:
    """Where an attempt ran, by its claim."""
    return Placement.from_json(claim["placement"]) if claim and claim.get("placement") else None


def teacher_usd(events: Iterable[Event]) -> float | None:
    """Dollars for the teacher over all attempts: the newest total that a generation event names; None if none does."""
    newest = None
    for event in events:
        if event.kind == "generation" and event.fields.get("usd") is not None:
            newest = float(event.fields["usd"])
    return newest
