"""How fast a run worked: timed from its events, warm-up left out, carried in its report."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from cluster.events import Event
from cluster.node.pace import GenerationPace, Pace, TrainingPace, pace_of


def event(second: float, kind: str, attempt: int = 1, **fields: Any) -> Event:
    t = datetime.fromtimestamp(1_800_000_000 + second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Event(t, kind, attempt, "node", fields)


def step(attempt: int, seconds: float, *, ranks: int = 2, tokens: int = 100, **more: Any) -> Event:
    each = tokens / seconds / ranks
    return event(
        0, "step", attempt, tokens=tokens, seconds=seconds, tokens_per_second=tokens / seconds,
        tokens_per_second_per_gpu=each, **more,
    )  # fmt: skip


def test_first_step_of_every_attempt_warms_up_and_does_not_count() -> None:
    pace = pace_of([step(1, 9.0), step(1, 2.0), step(1, 3.0), step(2, 9.0), step(2, 1.0)])
    assert pace.training == TrainingPace(ranks=2, steps=3, tokens=300, seconds=6.0)


def test_mfu_is_averaged_by_time_memory_is_the_most_and_waits_add_up() -> None:
    told = [
        step(1, 9.0, mfu=0.01, peak_memory_bytes=90, data_wait_s=5.0),
        step(1, 1.0, mfu=0.2, peak_memory_bytes=50, data_wait_s=0.25),
        step(1, 3.0, mfu=0.4, peak_memory_bytes=70, data_wait_s=0.5),
    ]
    pace = pace_of(told).training
    assert pace is not None
    assert (pace.mfu, pace.peak_memory_bytes, pace.data_wait_s) == (0.35, 70, 0.75)
    unknown = pace_of([*told, step(1, 1.0, mfu=None)]).training
    assert unknown is not None
    assert (unknown.mfu, unknown.data_wait_s) == (None, None), "what some steps do not say is not made up"


def test_of_several_world_sizes_the_one_with_most_steps_counts() -> None:
    told = [step(1, 9.0), step(1, 2.0), *(step(2, 1.0, ranks=4) for _ in range(4))]
    assert pace_of(told).training == TrainingPace(ranks=4, steps=3, tokens=300, seconds=3.0)


def test_generation_is_timed_from_first_to_last_word_of_each_attempt() -> None:
    told = [
        event(10, "generation", rows=0, requests=0),
        event(20, "generation", rows=30, requests=5),
        event(100, "generation", 2, rows=30, requests=5),
        event(105, "generation", 2, rows=50, requests=8),
    ]
    assert pace_of(told).generation == GenerationPace(requests=8, rows=50, seconds=15.0)


def test_time_in_which_the_teacher_answered_nobody_says_nothing_about_its_speed() -> None:
    told = [
        event(10, "generation", rows=0, requests=0),
        event(15, "generation", rows=30, requests=5),
        event(20, "generation", rows=30, requests=5, waiting="HTTP 503"),
        event(90, "generation", rows=30, requests=5, waiting="HTTP 503"),
        event(95, "generation", rows=50, requests=8, waiting=None),
        event(100, "generation", rows=60, requests=10, waiting=None),
    ]
    assert pace_of(told).generation == GenerationPace(requests=10, rows=60, seconds=90.0 - 75.0)


def test_what_was_not_timed_is_none() -> None:
    assert pace_of([]) == Pace(None, None)
    assert pace_of([event(1, "generation", rows=9, requests=1), step(1, 1.0)]) == Pace(None, None)
    assert pace_of([event(1, "step", step=1, tokens_per_second=5.0)]).training is None


def test_json_both_ways_and_reports_of_older_versions() -> None:
    pace = Pace(TrainingPace(2, 3, 300, 6.0), GenerationPace(8, 50, 15.0))
    assert Pace.from_json(pace.to_json()) == pace
    for odd in (None, {}, {"training": None}, {"training": {"speed": 1}}, "x"):
        assert Pace.from_json(odd) == Pace(None, None)
