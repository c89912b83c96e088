"""How fast a run worked, from its nodes' events; its report carries this, and later estimates go by it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cluster.events import Event, seconds_of
from cluster.node.teacher_waits import teacher_waits

_STEP_FIELDS: Final = ("tokens", "seconds", "tokens_per_second", "tokens_per_second_per_gpu")


@dataclass(frozen=True)
class TrainingPace:
    """Training steps that were timed; the first of every attempt, which warms up, is not among them.

    Attributes:
        ranks: training ranks of the job.
        steps, tokens, seconds: of all those steps together; tokens without padding, seconds without saves.
        mfu: of those steps together, a fraction; None where the peak of the GPU is not known, or there is none.
        peak_memory_bytes: most memory of any rank: what tensors took of its GPU, or a process on a CPU.
        data_wait_s: of `seconds`, waited for rows. Both None in runs of versions that did not measure them.
    """

    ranks: int
    steps: int
    tokens: int
    seconds: float
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    data_wait_s: float | None = None


@dataclass(frozen=True)
class GenerationPace:
    """What the teacher was seen to do.

    Attributes:
        requests, rows: answered and kept while it was timed.
        seconds: that took, all requests in flight together, without the time in which it answered nobody.
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
    # By time: an MFU times its step's seconds is the step's FLOPs at the peak.
    at_peak = [float(one["mfu"]) * float(one["seconds"]) for one in told if one.get("mfu") is not None]
    memory = [int(one["peak_memory_bytes"]) for one in told if one.get("peak_memory_bytes")]
    waits = [float(one["data_wait_s"]) for one in told if one.get("data_wait_s") is not None]
    return TrainingPace(
        ranks,
        len(told),
        sum(int(one["tokens"]) for one in told),
        round(seconds, 3),
        mfu=round(sum(at_peak) / seconds, 4) if len(at_peak) == len(told) else None,
        peak_memory_bytes=max(memory, default=None),
        data_wait_s=round(sum(waits), 3) if len(waits) == len(told) else None,
    )


def _generation(events: Sequence[Event]) -> GenerationPace | None:
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
    for wait in teacher_waits(events):
        if wait.attempt in first:
            seconds -= wait.within(seconds_of(first[wait.attempt].t), seconds_of(last[wait.attempt].t))
    if total["requests"] <= 0 or total["rows"] <= 0 or seconds <= 0:
        return None
    return GenerationPace(total["requests"], total["rows"], round(seconds, 3))
