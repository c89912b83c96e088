"""How fast a run worked, from its nodes' events; its report carries this, and later estimates go by it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cluster.events import Event, seconds_of

_STEP_FIELDS: Final = ("tokens", "seconds", "tokens_per_second", "tokens_per_second_per_gpu")


@dataclass(frozen=True)
class TrainingPace:
    """Training steps that were timed; the first of every attempt, which warms up, is not among them.

    Attributes:
        ranks: training ranks of the job.
        steps, tokens, seconds: of all those steps together; tokens without padding, seconds without saves.
    """

    ranks: int
    steps: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class GenerationPace:
    """What the teacher was seen to do.

    Attributes:
        requests, rows: answered and kept while it was timed.
        seconds: that took, all requests in flight together.
    """

    requests: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class Pace:
    """What a report says of a run's speed; None for a stage that did not run, or too briefly to be timed."""

    training: TrainingPace | None
    generation: GenerationPace | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Pace:
        """Read what `to_json` wrote; what is not there, or not of this version, is None."""
        body: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        training, generation = body.get("training"), body.get("generation")
        try:
            return cls(
                TrainingPace(**training) if training else None, GenerationPace(**generation) if generation else None
            )
        except TypeError:
            return cls(None, None)


def pace_of(events: Sequence[Event]) -> Pace:
    """Time the stages of a run."""
    return Pace(_training(events), _generation(events))


def _training(events: Iterable[Event]) -> TrainingPace | None:
    """Where attempts had different numbers of ranks, the number that made most steps counts."""
    steps: dict[int, list[Mapping[str, Any]]] = {}
    seen: set[int] = set()
    for event in events:
        if event.kind != "step" or not all(event.fields.get(name) for name in _STEP_FIELDS):
            continue
        if event.attempt in seen:
            each = event.fields["tokens_per_second_per_gpu"]
            steps.setdefault(round(event.fields["tokens_per_second"] / each), []).append(event.fields)
        seen.add(event.attempt)
    if not steps:
        return None
    ranks = max(steps, key=lambda one: len(steps[one]))
    told = steps[ranks]
    seconds = sum(float(one["seconds"]) for one in told)
    return TrainingPace(ranks, len(told), sum(int(one["tokens"]) for one in told), round(seconds, 3))


def _generation(events: Iterable[Event]) -> GenerationPace | None:
    first: dict[int, Event] = {}
    last: dict[int, Event] = {}
    for event in events:
        if event.kind == "generation" and {"requests", "rows"} <= event.fields.keys():
            first.setdefault(event.attempt, event)
            last[event.attempt] = event
    total: Counter[str] = Counter()
    seconds = 0.0
    for attempt, begin in first.items():
        end = last[attempt]
        total.update({name: int(end.fields[name]) - int(begin.fields[name]) for name in ("requests", "rows")})
        seconds += seconds_of(end.t) - seconds_of(begin.t)
    if total["requests"] <= 0 or total["rows"] <= 0 or seconds <= 0:
        return None
    return GenerationPace(total["requests"], total["rows"], round(seconds, 3))
