"""What the saves behind commits took: found in the newest events, without reading all of a long run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoints.keys import CommitRef
from checkpoints.store import Store
from cluster.events import batch_key
from cluster.runs.told_saves import told_saves

T = "2026-11-22T00:00:00.000Z"


def tell(store: Store, attempt: int, number: int, *events: dict[str, Any]) -> None:
    store.put_once(batch_key(attempt, "node", number), {"events": [{"t": T, **one} for one in events]})


def step(number: int) -> dict[str, Any]:
    return {"kind": "step", "step": number}


def save(position: int, seconds: float = 2.0, *, committed: bool = True) -> dict[str, Any]:
    return {"kind": "save", "position": position, "seconds": seconds, "stall_s": 0.1, "committed": committed}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run of two attempts; the second has a batch for each of its 200 steps, and saves every tenth."""
    store = Store.open(str(tmp_path))
    tell(store, 1, 1, *(step(number) for number in range(1, 10)))
    tell(store, 1, 2, step(10), step(11), save(10, 7.0))
    for number in range(1, 201):
        saved = [save(number - 1)] if number > 1 and (number - 1) % 10 == 0 else []
        tell(store, 2, number, step(number), *saved)
    return store


def test_saves_are_found_attempt_by_attempt(store: Store) -> None:
    refs = [CommitRef("train", 190, 2), CommitRef("train", 20, 2), CommitRef("train", 10, 1), CommitRef("export", 0, 2)]
    found = told_saves(store, refs)
    assert set(found) == set(refs[:3])
    assert (found[refs[0]]["seconds"], found[refs[2]]["seconds"]) == (2.0, 7.0)


def test_the_newest_commits_cost_a_few_reads_also_where_one_was_never_told(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 185):
        store.put(batch_key(2, "node", number), b"torn: whoever reads this is warned")
    newest = [CommitRef("train", 190, 2), CommitRef("train", 200, 2)]  # the machine died before it told of the last
    assert set(told_saves(store, newest)) == {newest[0]}
    assert not caplog.records
    told_saves(store, [CommitRef("train", 100, 2)])
    assert "damaged" in caplog.text


def test_a_save_that_was_given_up_is_none_and_a_run_without_events_has_none(store: Store) -> None:
    tell(store, 3, 1, step(1), step(2), save(2, committed=False))
    assert told_saves(store, [CommitRef("train", 2, 3), CommitRef("train", 5, 4)]) == {}
    assert told_saves(store, []) == {}
