"""One run's attempts as people want to read them, from its records and events. Pure.

Times are what the machines' clocks said: information, never order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord
from cluster.events import Event, seconds_of
from cluster.plan import Placement


@dataclass(frozen=True)
class AttemptSummary:
    """One attempt.

    Attributes:
        place: `local/a`; empty if nobody recorded it.
        started_at, ended_at: ISO times; empty while unknown.
        stop_reason, detail: how it ended; empty while it has not.
        base: what it started from; None before that is known, or if there was nothing.
        reached: (stage, position) of its last work, committed or not.
        seconds: from its start to its end.
        billed_s: of its machines: from their boot, where they said when that was.
        cost_usd: for its machines, `billed_s` at the price of the plan; None while that is unknown.
        micro_batch_size: rows of one forward pass that it trained with, as its claim says; None where it says nothing.
        on_demand: why its machines were on demand although the plan had spot ones; empty if they were not.
    """

    number: int
    place: str
    pricing: str
    started_at: str
    ended_at: str
    stop_reason: str
    detail: str
    has_base: bool
    base: CommitRef | None
    reached: tuple[str, int] | None
    seconds: float
    cost_usd: float | None
    billed_s: float = 0.0
    on_demand: str = ""
    micro_batch_size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "number": self.number, "place": self.place, "pricing": self.pricing, "started_at": self.started_at,
            "ended_at": self.ended_at, "stop_reason": self.stop_reason, "detail": self.detail,
            "base": self.base.to_json() if self.base else None, "reached": self.reached,
            "seconds": round(self.seconds, 3), "billed_s": round(self.billed_s, 3), "cost_usd": self.cost_usd,
            "on_demand": self.on_demand, "micro_batch_size": self.micro_batch_size,
        }  # fmt: skip


def summarize_attempts(records: Iterable[AttemptRecord], events: Sequence[Event]) -> tuple[AttemptSummary, ...]:
    """Put together what records and events know of each attempt, in order of their numbers."""
    return tuple(_summarize(record, events) for record in sorted(records, key=lambda one: one.number))


def reached_step(events: Iterable[Event], attempt: int) -> int | None:
    """The last training step that an attempt told of."""
    steps = [int(event.fields["step"]) for event in events if event.kind == "step" and event.attempt == attempt]
    return max(steps, default=None)


def _summarize(record: AttemptRecord, events: Sequence[Event]) -> AttemptSummary:
    claim: Mapping[str, Any] = record.claim or {}
    end: Mapping[str, Any] = record.end or {}
    told = {
        str(event.fields.get("state")): event
        for event in events
        if event.kind == "attempt" and event.writer == "supervisor" and event.fields.get("number") == record.number
    }
    started, ended = told.get("started"), told.get("ended")
    raw = claim.get("placement") or end.get("placement")
    if raw is None and started is not None:
        raw = started.fields.get("placement")
    place = Placement.from_json(raw) if raw else None
    seconds = float(ended.fields.get("seconds", 0.0)) if ended else 0.0
    seconds = seconds or float(end.get("seconds", 0.0))
    started_at = started.t if started else str(claim.get("started_at", ""))
    if not seconds and started_at:  # nobody saw its end: it lived at least until its last word
        last = max((event.t for event in events if event.attempt == record.number), default=started_at)
        seconds = max(seconds_of(last) - seconds_of(started_at), 0.0)
    ended_at = ended.t if ended else str(end.get("ended_at", ""))
    billed_s = _billed_s(str(claim.get("machine_started_at", "")), started_at, ended_at, seconds)
    return AttemptSummary(
        number=record.number,
        place=place.name if place else "",
        pricing=place.pricing.value if place else "",
        started_at=started_at,
        ended_at=ended_at,
        stop_reason=str(end.get("stop_reason", "")),
        detail=str(end.get("detail", "")),
        has_base=record.has_base,
        base=record.base,
        reached=_reached(record.number, end, ended, events),
        seconds=seconds,
        cost_usd=place.usd_for(billed_s) if place else None,
        billed_s=billed_s,
        on_demand=str(started.fields.get("on_demand", "")) if started else "",
        micro_batch_size=claim.get("micro_batch_size"),
    )


def _billed_s(booted_at: str, started_at: str, ended_at: str, seconds: float) -> float:
    """Seconds that an attempt's machines were paid for: from their boot, which a machine of a cloud says in its claim.

    Where nobody saw the end, `seconds` is as long as the attempt is known to have lived.
    """
    if not booted_at:
        return seconds
    if ended_at:
        return max(seconds_of(ended_at) - seconds_of(booted_at), seconds)
    return max(seconds_of(started_at) - seconds_of(booted_at), 0.0) + seconds if started_at else seconds


def _reached(
    number: int, end: Mapping[str, Any], ended: Event | None, events: Sequence[Event]
) -> tuple[str, int] | None:
    """The best witness first: the dead node's own disk, as the supervisor read it; then what it told before."""
    for witness in (end.get("reached"), ended.fields.get("reached") if ended else None):
        if witness:
            return str(witness[0]), int(witness[1])
    step = reached_step(events, number)
    return None if step is None else ("train", step)
