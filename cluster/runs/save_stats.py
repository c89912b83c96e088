"""What a run's saves took, and which one is under way, from its events: so that a slow store is seen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cluster.events import Event, seconds_of


@dataclass(frozen=True)
class SaveStats:
    """Saves of training state over all attempts.

    Attributes:
        committed, skipped: how many; skipped ones found the save before them still under way.
        seconds_median, seconds_max: from the call to the commit. slowest_step: of the longest one.
        stall_s_median, stall_s_max: how long training stood still.
        stored_bytes_median, stored_bytes_max: what was put into the store.
        lag_steps_max: steps trained while one was under way, at most; None where its program does not say.
    """

    committed: int
    skipped: int
    seconds_median: float
    seconds_max: float
    slowest_step: int
    stall_s_median: float
    stall_s_max: float
    stored_bytes_median: float
    stored_bytes_max: int
    lag_steps_max: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class SaveUnderWay:
    """A save that has begun and is not committed yet: of which step, and since when (seconds since 1970)."""

    step: int
    since_s: float


def save_under_way(before: SaveUnderWay | None, event: Event) -> SaveUnderWay | None:
    """Which save is under way once this event has happened; `before`: the same before it."""
    match event.kind:
        case "saving":
            return SaveUnderWay(int(event.fields["position"]), seconds_of(event.t))
        case "step" if event.fields.get("saving") is not None and event.fields.get("saving_since"):
            return SaveUnderWay(int(event.fields["saving"]), seconds_of(str(event.fields["saving_since"])))
        case "save" if before is not None and event.fields.get("position") != before.step:
            return before  # one that was skipped for this one's sake
        case "step" | "save" | "base" | "attempt" | "end":
            return None
    return before


def save_stats(events: Sequence[Event]) -> SaveStats | None:
    """Put together what the events of kind `save` say; None if nothing was committed."""
    told = [event.fields for event in events if event.kind == "save"]
    done = [one for one in told if one.get("committed", True)]
    if not done:
        return None
    seconds = [float(one["seconds"]) for one in done]
    stalls = [float(one["stall_s"]) for one in done]
    stored = [int(one.get("stored_bytes", one["bytes"])) for one in done]
    lags = [int(one["lag_steps"]) for one in done if one.get("lag_steps") is not None]
    return SaveStats(
        committed=len(done),
        skipped=len(told) - len(done),
        seconds_median=median(seconds),
        seconds_max=max(seconds),
        slowest_step=int(done[seconds.index(max(seconds))]["position"]),
        stall_s_median=median(stalls),
        stall_s_max=max(stalls),
        stored_bytes_median=median(stored),
        stored_bytes_max=max(stored),
        lag_steps_max=max(lags) if lags else None,
    )
