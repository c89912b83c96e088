"""Which commits count: cases by hand, and any history at all against a brute-force reading of the rule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.errors import Damaged
from checkpoints.keys import CommitRef, Layout, Stage
from checkpoints.lineage import AttemptRecord, counting_commits

LAYOUT = Layout((Stage("generate", "data", "part-", 6), Stage("train", "checkpoints", "step-", 8)))


def attempt(number: int, *base: CommitRef | None) -> AttemptRecord:
    """An attempt with the given base (None: from nothing), or with none recorded yet."""
    return AttemptRecord(number, {"nonce": "x"}, bool(base), base[0] if base else None, None)


def part(position: int, number: int) -> CommitRef:
    return CommitRef("generate", position, number)


def step(position: int, number: int) -> CommitRef:
    return CommitRef("train", position, number)


def test_nothing_counts_before_the_first_base() -> None:
    assert counting_commits([attempt(1)], [step(10, 1)], LAYOUT) == []
    assert counting_commits([], [step(10, 1)], LAYOUT) == []


def test_all_commits_of_the_newest_attempt_count_newest_first() -> None:
    commits = [part(1, 1), step(10, 1), part(2, 1), step(20, 1)]
    assert counting_commits([attempt(1, None)], commits, LAYOUT) == [step(20, 1), step(10, 1), part(2, 1), part(1, 1)]


def test_what_a_zombie_commits_beyond_its_successors_base_does_not_count() -> None:
    records = [attempt(1, None), attempt(2, step(20, 1))]
    commits = [step(10, 1), step(20, 1), step(30, 1), step(40, 1), step(30, 2)]
    assert counting_commits(records, commits, LAYOUT) == [step(30, 2), step(20, 1), step(10, 1)]


def test_a_claim_without_a_base_changes_nothing() -> None:
    records = [attempt(1, None), attempt(2)]
    assert counting_commits(records, [step(10, 1), step(20, 1)], LAYOUT) == [step(20, 1), step(10, 1)]


def test_an_attempt_that_fell_back_leaves_out_what_it_skipped() -> None:
    # 2 started from 20 and got to 40; 3 found 40 and 30 damaged and fell back to attempt 1's 20.
    records = [attempt(1, None), attempt(2, step(20, 1)), attempt(3, step(20, 1))]
    commits = [step(10, 1), step(20, 1), step(30, 2), step(40, 2), step(30, 3)]
    assert counting_commits(records, commits, LAYOUT) == [step(30, 3), step(20, 1), step(10, 1)]


def test_an_attempt_without_a_base_in_the_middle_is_passed_over() -> None:
    records = [attempt(1, None), attempt(2), attempt(3, step(10, 1))]
    assert counting_commits(records, [step(10, 1), step(20, 2), step(20, 1)], LAYOUT) == [step(10, 1)]


def test_a_null_base_forgets_everything_before_it() -> None:
    # 1 was claimed and wrote, but its listing showed nothing when 2 began: only 2's commits count.
    records = [attempt(1, None), attempt(2, None)]
    assert counting_commits(records, [step(10, 1), step(5, 2)], LAYOUT) == [step(5, 2)]


def test_a_base_in_a_later_stage_keeps_all_of_the_stage_before() -> None:
    records = [attempt(1, None), attempt(2, step(10, 1))]
    commits = [part(1, 1), part(2, 1), step(10, 1), step(20, 1), part(3, 1)]
    assert counting_commits(records, commits, LAYOUT) == [step(10, 1), part(3, 1), part(2, 1), part(1, 1)]


def test_a_base_in_an_earlier_stage_cuts_off_the_later_one() -> None:
    records = [attempt(1, None), attempt(2, part(2, 1))]
    commits = [part(1, 1), part(2, 1), part(3, 1), step(10, 1), part(3, 2)]
    assert counting_commits(records, commits, LAYOUT) == [part(3, 2), part(2, 1), part(1, 1)]


def test_a_base_that_is_not_older_is_damage_not_an_endless_loop() -> None:
    with pytest.raises(Damaged, match=r"attempts/000002\.base\.json is damaged: it starts from attempt 2"):
        counting_commits([attempt(2, step(10, 2))], [], LAYOUT)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[AttemptRecord], list[CommitRef]]:
    """Attempts with or without bases (bases name older attempts, existing commits or not), and commits by anybody."""
    count = draw(st.integers(1, 6))
    places = st.tuples(st.sampled_from(["generate", "train"]), st.integers(0, 4))
    records = []
    for number in range(1, count + 1):
        kinds = ["none", "null"] + (["base"] if number > 1 else [])
        kind = draw(st.sampled_from(kinds))
        if kind == "base":
            stage, position = draw(places)
            records.append(attempt(number, CommitRef(stage, position, draw(st.integers(1, number - 1)))))
        else:
            records.append(attempt(number, None) if kind == "null" else attempt(number))
    commits = draw(st.lists(st.builds(lambda p, n: CommitRef(*p, n), places, st.integers(1, count + 1)), max_size=25))
    return draw(st.permutations(records)), commits


def counts(ref: CommitRef, records: list[AttemptRecord]) -> bool:
    """The rule, read literally: is there a path from the newest attempt with a base back to this commit's attempt?"""
    based = {record.number: record for record in records if record.has_base}
    if not based:
        return False

    def reached_from(number: int) -> bool:
        if ref.attempt == number and number == max(based):
            return True
        record = based.get(number)
        if record is None or record.base is None:
            return False
        base = record.base
        if base.attempt == ref.attempt:
            stages = ["generate", "train"]
            return (stages.index(ref.stage), ref.position) <= (stages.index(base.stage), base.position)
        return reached_from(base.attempt)

    return reached_from(max(based))


@settings(max_examples=400)
@given(histories())
def test_any_history_agrees_with_the_rule_read_literally(
    history: tuple[list[AttemptRecord], list[CommitRef]],
) -> None:
    records, commits = history
    found = counting_commits(records, commits, LAYOUT)
    assert set(found) == {ref for ref in commits if counts(ref, records)}
    assert found == sorted(set(found), key=LAYOUT.sort_key, reverse=True)


@given(histories())
def test_a_new_attempt_on_the_newest_commit_keeps_all_that_counted_up_to_it(
    history: tuple[list[AttemptRecord], list[CommitRef]],
) -> None:
    records, commits = history
    before = counting_commits(records, commits, LAYOUT)
    if not before:
        return
    successor = max(record.number for record in records) + 1
    commits = [ref for ref in commits if ref.attempt < successor]
    before = counting_commits(records, commits, LAYOUT)
    if before:
        after = counting_commits([*records, attempt(successor, before[0])], commits, LAYOUT)
        assert after[0] == before[0]
        assert set(after) <= set(before)
