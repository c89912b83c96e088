"""Lost steps, where the time went, and what it cost: computed from records and events alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord
from cluster.events import Event
from cluster.node.ledger import Asked
from cluster.plan import Placement, Pricing
from cluster.recovery import Action, Decision, StopReason
from cluster.runs.attempt_summary import AttemptSummary, summarize_attempts
from cluster.runs.goodput import Goodput, lost_steps, split_time
from cluster.runs.report import render_report
from cluster.runs.spending import teacher_usd

PLACE = Placement("local", "a", None, "process", Pricing.SPOT, 3.6, 2)


def at(second: float) -> str:
    return datetime.fromtimestamp(1_800_000_000 + second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event(second: float, kind: str, attempt: int, writer: str = "node", **fields: Any) -> Event:
    return Event(at(second), kind, attempt, writer, fields)


def attempt(number: int, began: float, ended: float, **facts: Any) -> AttemptSummary:
    given: dict[str, Any] = {
        "number": number, "place": "local/a", "pricing": "spot", "started_at": at(began), "ended_at": at(ended),
        "stop_reason": "lost", "detail": "", "has_base": True, "base": None, "reached": None,
        "seconds": ended - began, "cost_usd": 0.0,
    }  # fmt: skip
    return AttemptSummary(**given | facts)


def steps(number: int, first: float, last: float) -> list[Event]:
    count = int(last - first) + 1
    return [event(first + i, "step", number, step=i) for i in range(count)]


TWO = (
    attempt(1, 0, 40, reached=("train", 30)),
    attempt(2, 41, 80, stop_reason="done", base=CommitRef("train", 10, 1), reached=("train", 50)),
)
# Attempt 1 works from 10 to 35 and commits step 10 at 20, having stalled 1 s; attempt 2 works from 50 to its end at 80.
TOLD = [
    *steps(1, 10, 35),
    event(20, "save", 1, position=10, stall_s=1.0, committed=True),
    event(30, "save", 1, position=20, stall_s=1.0, committed=True),
    *steps(2, 50, 75),
]


def test_time_is_split_at_the_commit_that_the_next_attempt_started_from() -> None:
    goodput = split_time(TWO, TOLD)
    assert goodput == Goodput(useful_s=9 + 30, lost_s=15, saving_s=1, waiting_s=25)
    assert goodput.wall_s == 80


def test_steps_that_a_node_marked_and_never_told_are_lost_time_as_well() -> None:
    """Attempt 1 told step 25 at 35 and marked step 30; it lived until 40, or until 37 in the second case."""
    told = [replace(one, fields={**one.fields, "seconds": 1.0}) if one.kind == "step" else one for one in TOLD]
    assert split_time(TWO, told) == Goodput(useful_s=9 + 30, lost_s=15 + 5, saving_s=1, waiting_s=20)
    shorter = (replace(TWO[0], ended_at=at(37)), TWO[1])
    assert split_time(shorter, told) == Goodput(useful_s=9 + 30, lost_s=15 + 2, saving_s=1, waiting_s=23)


def test_work_whose_commit_was_never_told_counts_up_to_the_last_word() -> None:
    goodput = split_time(TWO, [one for one in TOLD if one.kind != "save"])
    assert (goodput.useful_s, goodput.lost_s) == (25 + 30, 0)


def test_an_attempt_that_started_from_older_work_makes_all_of_the_one_between_lost() -> None:
    between = attempt(2, 41, 60, base=CommitRef("train", 10, 1))
    attempts = (TWO[0], between, attempt(3, 61, 90, base=CommitRef("train", 10, 1), stop_reason="done"))
    goodput = split_time(attempts, [*TOLD[:28], *steps(2, 50, 58), *steps(3, 70, 80)])
    assert goodput.lost_s == 15 + 8


def test_steps_of_which_none_was_saved_are_lost_time_when_the_rows_are_what_is_gone_on_from() -> None:
    attempts = (
        attempt(1, 0, 40, reached=("train", 9)),
        attempt(2, 41, 80, stop_reason="done", base=CommitRef("generate", 3, 1), reached=("train", 50)),
    )
    told = [event(5, "generation", 1), event(9, "generation", 1), *steps(1, 20, 28), *steps(2, 50, 75)]
    assert split_time(attempts, told).lost_s == 28 - 9
    assert lost_steps(attempts) == (9,)
    rows_alone = [one for one in told if one.kind == "generation" or one.attempt == 2]
    assert split_time(attempts, rows_alone).lost_s == 0


def test_the_time_between_an_end_and_a_resume_does_not_count() -> None:
    told = sorted([*TOLD, event(40, "end", 1, "supervisor"), event(41, "decision", 2, "supervisor")], key=lambda e: e.t)
    assert split_time(TWO, told).wall_s == 79


WAITING = {"waiting": "waiting for the teacher since ...: HTTP 503", "requests": 4}


def test_a_teacher_that_answers_nobody_is_waited_for_and_that_is_no_useful_time() -> None:
    told = [
        event(5, "generation", 1, requests=0),
        event(9, "generation", 1, requests=4),
        event(13, "generation", 1, waiting_since=at(10), **WAITING),
        event(20, "generation", 1, waiting_since=at(10), **WAITING),
        event(21, "generation", 1, requests=5, waiting=None),
        *steps(1, 25, 40),
    ]
    whole = (attempt(1, 0, 40, stop_reason="done"),)
    assert split_time(whole, told) == Goodput(35 - 11, 0, 0, waiting_s=5 + 11, teacher_wait_s=11)
    # Killed while it waits, gone on with by another attempt: the wait is neither useful nor lost.
    two = (attempt(1, 0, 30), attempt(2, 31, 60, stop_reason="done", base=CommitRef("generate", 1, 1)))
    goodput = split_time(two, [*told[:4], event(40, "generation", 2, requests=5)])
    assert goodput == Goodput(5 + 20, 0, 0, waiting_s=60 - 25, teacher_wait_s=10)
    assert goodput.to_json()["teacher_wait_s"] == 10


def test_a_wait_does_not_begin_before_the_last_answer_and_without_a_beginning_with_its_first_word() -> None:
    whole = (attempt(1, 0, 40, stop_reason="done"),)
    one_actor_was_answered = [event(5, "generation", 1, requests=1), event(9, "generation", 1, requests=4)]
    end = event(30, "generation", 1, requests=4)
    early = [*one_actor_was_answered, event(13, "generation", 1, waiting_since=at(2), **WAITING), end]
    assert split_time(whole, early).teacher_wait_s == 30 - 9
    unsaid = [*one_actor_was_answered, event(13, "generation", 1, **WAITING), end]
    assert split_time(whole, unsaid).teacher_wait_s == 30 - 13


def test_an_empty_run_has_no_goodput() -> None:
    assert split_time((), []).wall_s == 0


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0, 5), st.floats(0, 1), st.booleans()), max_size=5)
)
def test_the_parts_always_add_up_and_are_never_negative(shape: list[tuple[float, float, float, float, bool]]) -> None:
    attempts, told, now = [], [], 0.0
    for number, (idle, work, stall, away, base_is_old) in enumerate(shape, start=1):
        wait = {"waiting": "HTTP 503", "waiting_since": at(now)}
        told += [event(now + idle, "generation", number, **wait), event(now + idle + work * away, "generation", number)]
        base = CommitRef("train", number - 1, number - 1) if number > 1 and not base_is_old else None
        attempts.append(attempt(number, now, now + idle + work, base=base))
        told += [event(now + idle, "step", number, step=1), event(now + idle + work, "step", number, step=2)]
        told.append(event(now + idle + work / 2, "save", number, position=number, stall_s=stall))
        now += idle + work
    told.sort(key=lambda one: one.t)
    goodput = split_time(attempts, told)
    assert min(goodput.useful_s, goodput.lost_s, goodput.saving_s, goodput.waiting_s) >= -1e-6
    assert 0 <= goodput.teacher_wait_s <= goodput.waiting_s
    assert goodput.wall_s == pytest.approx(now, abs=0.01)


def test_lost_steps_count_from_the_base_and_generation_loses_none() -> None:
    attempts = [
        attempt(1, 0, 1, reached=("generate", 3)),
        attempt(2, 1, 2, base=CommitRef("generate", 3, 1), reached=("train", 7)),
        attempt(3, 2, 3, base=CommitRef("generate", 5, 2), reached=("train", 30)),
        attempt(4, 3, 4, has_base=False),
        attempt(5, 4, 5, base=CommitRef("train", 24, 3), reached=("train", 60)),
        attempt(6, 5, 6, base=CommitRef("export", 0, 5)),
    ]
    assert lost_steps(attempts) == (0, 7, 6, 0, 0)


class TestSummaries:
    RECORD = AttemptRecord(
        number=1,
        claim={"placement": PLACE.to_json(), "started_at": at(1)},
        has_base=True,
        base=None,
        end={"stop_reason": "lost", "detail": "gone", "seconds": 9.0, "ended_at": at(10), "reached": ["train", 5]},
    )

    def test_records_alone_are_enough(self) -> None:
        (one,) = summarize_attempts([self.RECORD], [])
        assert (one.place, one.pricing, one.started_at, one.ended_at) == ("local/a", "spot", at(1), at(10))
        assert (one.stop_reason, one.reached, one.seconds) == ("lost", ("train", 5), 9.0)
        assert one.cost_usd == pytest.approx(2 * 3.6 * 9 / 3600)

    def test_the_supervisor_knows_better_when_it_began(self) -> None:
        told = [
            event(0, "attempt", 1, "supervisor", state="started", number=1, placement=PLACE.to_json()),
            event(11, "attempt", 1, "supervisor", state="ended", number=1, seconds=11.0),
        ]
        (one,) = summarize_attempts([self.RECORD], told)
        assert (one.started_at, one.ended_at, one.seconds) == (at(0), at(11), 11.0)

    def test_without_a_witness_the_last_step_told_is_how_far_it_came(self) -> None:
        record = AttemptRecord(1, None, False, None, {"stop_reason": "lost", "reached": None})
        (one,) = summarize_attempts([record], steps(1, 0, 4))
        assert (one.reached, one.place, one.cost_usd) == (("train", 4), "", None)

    def test_one_whose_end_nobody_saw_lived_until_its_last_word(self) -> None:
        record = AttemptRecord(1, TestSummaries.RECORD.claim, False, None, {"stop_reason": "lost", "seconds": 0.0})
        (one,) = summarize_attempts([record], steps(1, 5, 8))
        assert one.seconds == 7


class TestMoney:
    def test_an_unknown_price_stays_unknown(self) -> None:
        assert PLACE.usd_for(3600) == 7.2
        unknown = Placement("aws", "x", None, "p4d", Pricing.SPOT, None, 1)
        assert unknown.usd_for(3600) is None

    def test_the_newest_total_of_the_teacher_counts(self) -> None:
        told = [event(1, "generation", 1, usd=0.5), event(2, "generation", 2, usd=0.75), event(3, "generation", 2)]
        assert teacher_usd(told) == 0.75
        assert teacher_usd([]) is None

    @pytest.mark.parametrize(
        ("teacher", "requests", "cost"), [(0.75, 4, 8.0), (None, 4, None), (None, 0, 7.25)]
    )  # fmt: skip
    def test_the_whole_is_known_only_if_its_parts_are(
        self, teacher: float | None, requests: int, cost: float | None
    ) -> None:
        decision = Decision(Action.FINISH, "The run is done.", exit_code=0, reason=StopReason.DONE)
        report = render_report(
            "demo-bcdfg", decision, attempts=(attempt(1, 0, 1, cost_usd=7.25),),
            commits=[CommitRef("export", 0, 1), CommitRef("train", 60, 1)],
            events=[event(0, "generation", 1, usd=teacher)],
            asked=Asked(sent=requests, different=requests), rows=None,
        )  # fmt: skip
        assert report.cost_usd == cost
        body = report.to_json()
        assert (body["step"], body["outcome"], body["regions"], body["cost_usd"]) == (60, "done", ["local/a"], cost)
