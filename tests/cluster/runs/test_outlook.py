"""What is left of a run: by its estimate first, then by its own clock."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord
from cluster.course import Course
from cluster.events import Event, iso_time
from cluster.hazard import PRIOR_PER_NODE_HOUR
from cluster.on_demand import Outlook
from cluster.plan import Placement, Pricing
from cluster.runs.outlook import Standing, courses_of, outlook_of, records_of_part

SPOT = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 2)
ROWS = Course(
    work_s=1000, work_spread=0.1, start_s=60, restart_s=70, away_s=300, save_interval_s=50, losses_per_hour=0.2
)
TRAINING = Course(
    work_s=4000, work_spread=0.1, start_s=400, restart_s=500, away_s=300, save_interval_s=600, losses_per_hour=0.8,
    finish_s=90,
)  # fmt: skip


def estimate(**courses: Course) -> dict[str, Any]:
    stages = [{"name": name, "course": asdict(course)} for name, course in courses.items()]
    return {"candidates": [{"stages": stages, "parts_usd": {"teacher": 8.0}}]}


BOTH = estimate(rows=ROWS, training=TRAINING)
FRESH = Standing(2, (), (), (), rows=0, target_rows=100)


def record(number: int, *, reason: str | None = None, seconds: float = 0.0, **claim: Any) -> AttemptRecord:
    end = None if reason is None else {"stop_reason": reason, "seconds": seconds}
    return AttemptRecord(number, {"placement": SPOT.to_json(), **claim}, has_base=True, base=None, end=end)


def event(at: float, kind: str, attempt: int, writer: str = "node", **fields: Any) -> Event:
    return Event(iso_time(at), kind, attempt, writer, fields)


def step(at: float, attempt: int, number: int, seconds: float = 4.0) -> Event:
    speed = {"tokens": 100, "seconds": seconds, "tokens_per_second": 25.0, "tokens_per_second_per_gpu": 12.5}
    return event(at, "step", attempt, step=number, total_steps=1000, **speed)


def look(standing: Standing, told: dict[str, Any] | None = BOTH) -> Outlook:
    found = outlook_of(told, standing)
    assert found is not None
    return found


def test_before_anything_ran_the_estimate_says_all_of_it() -> None:
    found = look(FRESH)
    assert found.course == replace(TRAINING, work_s=5000, work_spread=0.0)
    assert (found.then_s, found.other_usd, found.source) == (0.0, 8.0, "as estimated")


def test_on_machines_that_write_rows_alone_the_training_follows() -> None:
    found = look(replace(FRESH, num_nodes=1, trains_elsewhere=True))
    assert found.course == replace(ROWS, work_spread=0.0)
    assert found.then_s == 300 + 400 + 4000 + 90


def test_a_run_that_ends_with_its_rows_has_no_training_left() -> None:
    found = look(replace(FRESH, num_nodes=1, trains=False), estimate(rows=ROWS))
    assert (found.course.work_s, found.then_s) == (1000, 0.0)


def test_rows_that_are_kept_are_not_left_and_neither_is_their_part_of_the_teacher() -> None:
    found = look(replace(FRESH, rows=75))
    assert (found.course.work_s, found.other_usd) == (250 + 4000, 2.0)
    done = look(replace(FRESH, target_rows=None))
    assert (done.course.work_s, done.other_usd) == (4000, 0.0)


def test_measured_steps_replace_the_estimates_and_saved_ones_are_not_left() -> None:
    """1,000 steps of 8 s where the estimate said 4; 300 of them are saved, every 100."""
    events = [step(1000 + 8 * n, 1, n, seconds=8.0) for n in range(1, 320)]
    commits = [CommitRef("train", position, 1) for position in (300, 200, 100)]
    found = look(Standing(2, [record(1, started_at=iso_time(900))], commits, events))
    assert found.course.work_s == pytest.approx(700 * 8)
    assert found.course.save_interval_s == pytest.approx(800)
    assert found.course.start_s == found.course.restart_s == pytest.approx(108)
    assert found.source == "as this run was timed"


def test_measured_rows_replace_the_estimates() -> None:
    told = [event(10, "generation", 1, requests=2, rows=5), event(60, "generation", 1, requests=12, rows=25)]
    found = look(replace(FRESH, rows=40, events=told, trains=False))
    assert found.course.work_s == pytest.approx(60 * 50 / 20)


def test_the_way_back_is_timed_by_the_runs_own_recoveries() -> None:
    records = [record(1, started_at=iso_time(0)), record(2, started_at=iso_time(70), machine_started_at=iso_time(40))]
    events = [
        *(step(at, 1, at) for at in range(1, 10)),
        event(17, "decision", 1, "supervisor", action="relaunch"),
        *(step(80 + at, 2, 5 + at) for at in range(4)),
    ]
    found = look(Standing(2, records, [CommitRef("train", 5, 1)], events))
    assert found.course.away_s == 8 + 23  # noticed, another machine
    assert found.course.start_s == (1 + 40) / 2  # boot to first step, of both attempts


def test_losses_of_its_own_make_a_run_expect_more_of_them() -> None:
    calm, rough = (
        look(replace(FRESH, records=[record(1, reason=reason, seconds=3600.0)])).course.losses_per_hour
        for reason in ("done", "preempted")
    )
    assert calm < TRAINING.losses_per_hour < rough
    assert calm == pytest.approx(
        2 * 20 * 0.4 / 22
    )  # 0.8 an hour of two machines, weighing 20 hours, beside 2 of its own


def test_an_estimate_made_for_on_demand_says_nothing_of_spot() -> None:
    found = look(FRESH, estimate(rows=ROWS, training=replace(TRAINING, losses_per_hour=0.0)))
    assert found.course.losses_per_hour == pytest.approx(2 * PRIOR_PER_NODE_HOUR)


def test_where_nobody_knows_nothing_is_said() -> None:
    assert outlook_of(None, FRESH) is None
    assert outlook_of({"candidates": []}, FRESH) is None
    assert outlook_of(estimate(rows=ROWS), FRESH) is None
    assert courses_of({"candidates": [{"stages": [{"name": "rows", "course": {"work_s": 1.0}}]}]}) == {}


def test_without_an_estimate_the_runs_own_clock_is_enough() -> None:
    events = [step(100 + 4 * n, 1, n) for n in range(1, 11)]
    found = look(Standing(2, [record(1, started_at=iso_time(60))], [CommitRef("train", 10, 1)], events), None)
    assert found.course.work_s == pytest.approx(990 * 4)
    assert found.course.start_s == pytest.approx(44)
    assert found.course.losses_per_hour == pytest.approx(2 * PRIOR_PER_NODE_HOUR)


def test_a_finished_model_leaves_nothing() -> None:
    assert look(Standing(2, (), [CommitRef("export", 0, 1)], ())).course.work_s == 0


def test_what_earlier_parts_met_is_left_out() -> None:
    records = [record(1, reason="preempted"), record(2, reason="part_done"), record(3, reason="lost")]
    assert [one.number for one in records_of_part(records)] == [3]
