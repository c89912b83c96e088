"""When a run waited for a teacher that answered nobody, from its nodes' events. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.events import Event, seconds_of


@dataclass(frozen=True)
class TeacherWait:
    """One such time of one attempt, in seconds since 1970."""

    attempt: int
    begin: float
    end: float

    def within(self, begin: float, end: float) -> float:
        """Seconds of it between two moments."""
        return max(min(self.end, end) - max(self.begin, begin), 0.0)


def teacher_waits(events: Iterable[Event]) -> tuple[TeacherWait, ...]:
    """Every wait, attempt by attempt: from the first refusal (or the last answer since) to the next word without one.

    Args:
        events: of all attempts, in order of time.
    """
    of_attempt: dict[int, list[Event]] = {}
    for event in events:
        if event.kind == "generation":
            of_attempt.setdefault(event.attempt, []).append(event)
    return tuple(wait for told in of_attempt.values() for wait in _waits(told))


def _waits(told: list[Event]) -> list[TeacherWait]:
    """Those of one attempt, from its news of generation."""
    found: list[TeacherWait] = []
    begin: float | None = None
    requests, answered_at = None, 0.0
    for event in told:
        now = seconds_of(event.t)
        if event.fields.get("requests") != requests:
            requests, answered_at = event.fields.get("requests"), now
        if event.fields.get("waiting"):
            # Events of earlier versions do not say since when: then the wait begins with the first word of it.
            since = seconds_of(str(event.fields.get("waiting_since") or event.t))
            begin = max(since, answered_at) if begin is None else begin
        elif begin is not None:
            found.append(TeacherWait(event.attempt, begin, now))
            begin = None
    if begin is not None:
        found.append(TeacherWait(told[-1].attempt, begin, seconds_of(told[-1].t)))
    return found
