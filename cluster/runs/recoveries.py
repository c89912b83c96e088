"""How long a run stood still when it lost a machine, and on what: noticing, buying, setting up, starting again. Pure.

    last sign of life |--notice--|--buy--|--set up--|--start--| first new work
                        SkyPilot   cloud   SkyPilot    ours
                                           and ours

All of it is what clocks of several machines said: information, good to a second or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final

from checkpoints.lineage import AttemptRecord
from cluster.events import Event, seconds_of

WORK: Final = ("generation", "step")
"""Kinds of events that are work done."""


@dataclass(frozen=True)
class Recovery:
    """From an attempt's last sign of life to the first work of the next one. Seconds; None for what was not told.

    Attributes:
        attempt: the one that went on.
        notice_s: until somebody decided to go on.
        buy_s: until the machine was there, regions without capacity included.
        set_up_s: until our node began: SkyPilot's own set-up, and the installation of our code.
        start_s: until the first work of the new attempt: imports, Ray, the state read and verified.
        ray_s: of that, the start of Ray.
        imports_s: of that, from Ray's start until every training worker had imported what it needs.
        restore_s: of that, from then until the state was read and verified: tokens, the model, the workers' meeting.
        first_step_s: of that, the rest: the first training step.
    """

    attempt: int
    notice_s: float | None
    buy_s: float | None
    set_up_s: float | None
    start_s: float | None
    ray_s: float | None
    total_s: float
    imports_s: float | None = None
    restore_s: float | None = None
    first_step_s: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain values, rounded to a tenth of a second."""
        return {key: None if value is None else round(value, 1) for key, value in asdict(self).items()}


def recoveries_of(records: Sequence[AttemptRecord], events: Sequence[Event]) -> tuple[Recovery, ...]:
    """Every recovery of a run, in order; a resume, which somebody took their time for, is none."""
    ordered = sorted(records, key=lambda one: one.number)
    found = (_recovery(before, after, events) for before, after in pairwise(ordered))
    return tuple(one for one in found if one is not None)


def _recovery(before: AttemptRecord, after: AttemptRecord, events: Sequence[Event]) -> Recovery | None:
    claim = after.claim or {}
    works = [seconds_of(one.t) for one in events if one.attempt == after.number and one.kind in WORK]
    lives = [seconds_of(one.t) for one in events if one.attempt == before.number and one.writer != "supervisor"]
    if not works or not lives or not claim.get("started_at"):
        return None
    alive, worked, began = max(lives), min(works), seconds_of(claim["started_at"])
    talk = [one for one in events if one.writer == "supervisor" and alive <= seconds_of(one.t) <= began]
    if any(one.kind == "end" for one in talk):
        return None
    decided = min((seconds_of(one.t) for one in talk if one.kind in ("decision", "attempt")), default=None)
    machine = seconds_of(claim["machine_started_at"]) if claim.get("machine_started_at") else None
    bought = machine if machine is not None and (decided is None or machine >= decided) else decided
    # An attempt that writes rows first gets its training ready long after its first work: that is no part of its start.
    start = [one for one in events if one.attempt == after.number and seconds_of(one.t) <= worked]
    ray = _first(start, "ray")
    started, ready = _at(ray), _at(_first(start, "ready"))
    loaded = _at(_first(start, "base", stage="train"))
    return Recovery(
        attempt=after.number,
        notice_s=None if decided is None else decided - alive,
        buy_s=None if bought is None or decided is None else bought - decided,
        set_up_s=None if bought is None else max(began - bought, 0.0),
        start_s=max(worked - began, 0.0),
        ray_s=None if ray is None or ray.fields.get("seconds") is None else float(ray.fields["seconds"]),
        total_s=worked - alive,
        imports_s=_between(started, ready),
        restore_s=_between(ready, loaded),
        first_step_s=_between(loaded, worked),
    )


def _first(events: Sequence[Event], kind: str, **fields: str) -> Event | None:
    of_kind = (one for one in events if one.kind == kind)
    return next((one for one in of_kind if all(one.fields.get(key) == value for key, value in fields.items())), None)


def _at(event: Event | None) -> float | None:
    return None if event is None else seconds_of(event.t)


def _between(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else max(second - first, 0.0)
