"""What a recovery took, from the records and events of a run; by hand."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints.lineage import AttemptRecord
from cluster.events import Event, iso_time
from cluster.runs.recoveries import Recovery, recoveries_of


def event(at: float, kind: str, attempt: int, writer: str = "node", **fields: Any) -> Event:
    return Event(iso_time(at), kind, attempt, writer, fields)


def record(number: int, **claim: Any) -> AttemptRecord:
    return AttemptRecord(number=number, claim=claim, has_base=True, base=None, end=None)


RECORDS = (record(1, started_at=iso_time(0)), record(2, started_at=iso_time(70), machine_started_at=iso_time(40)))
EVENTS = (
    event(1, "step", 1),
    event(9, "step", 1),
    event(17, "decision", 1, "supervisor", action="relaunch"),
    event(17, "attempt", 1, "supervisor", state="started", number=2),
    event(73, "ray", 2, seconds=2.5),
    event(78, "base", 2),
    event(80, "step", 2),
)


def test_a_recovery_is_split_by_who_worked_on_it() -> None:
    (found,) = recoveries_of(RECORDS, EVENTS)
    assert found == Recovery(2, 8.0, 23.0, 30.0, 10.0, 2.5, 71.0)  # by a version that said no more of its start
    assert sum([8.0, 23.0, 30.0, 10.0]) == found.total_s


def test_our_own_part_is_split_by_what_was_done() -> None:
    told = (*EVENTS[:6], event(76, "ready", 2, seconds=2.9), event(78.5, "base", 2, stage="train"), EVENTS[-1])
    (found,) = recoveries_of(RECORDS, told)
    assert (found.imports_s, found.restore_s, found.first_step_s) == pytest.approx((3.0, 2.5, 1.5))
    assert found.start_s == pytest.approx(10.0)


def test_a_training_that_begins_after_the_rows_is_no_part_of_the_start() -> None:
    later = (event(900, "ready", 2, seconds=2.9), event(903, "base", 2, stage="train"), event(905, "step", 2))
    (found,) = recoveries_of(RECORDS, (*EVENTS[:6], event(80, "generation", 2), *later))
    assert found == Recovery(2, 8.0, 23.0, 30.0, 10.0, 2.5, 71.0)


def test_where_nobody_says_when_the_machine_came_all_of_it_is_set_up() -> None:
    (found,) = recoveries_of((RECORDS[0], record(2, started_at=iso_time(70))), EVENTS)
    assert (found.buy_s, found.set_up_s) == (0.0, 53.0)


@pytest.mark.parametrize(
    "events", [EVENTS[:4], (*EVENTS, event(18, "end", 1, "supervisor", exit_code=130))], ids=["no work yet", "a resume"]
)
def test_what_did_not_go_on_or_was_resumed_is_no_recovery(events: tuple[Event, ...]) -> None:
    assert recoveries_of(RECORDS, events) == ()
