"""Pruning a run that is over: what broken saves of any stage left, and all training state once the model is whole."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError, Damaged, NoGoodCommit, RunActive, Superseded
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef, Layout, Stage
from checkpoints.lineage import counting_commits
from checkpoints.pruning import delete_stage, prune
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from checkpoints.writer import CommitWriter

LAYOUT = Layout((Stage("train", "checkpoints", "step-", 8), Stage("export", "model", "", 0)))
MODEL = CommitRef("export", 0, 2)


def commit(store: Store, ref: CommitRef) -> None:
    writer = CommitWriter(store, LAYOUT, ref)
    writer.put("data", b"%d" % ref.position)
    writer.publish(meta={})


def trained(store: Store, *, exported: bool = True, ended: bool = True) -> AttemptLog:
    """Attempt 1 saved 10 and 20 and died in an export and in a save; attempt 2 saved 30 and exported the model."""
    log = AttemptLog(store, LAYOUT)
    for number, base, positions in ((1, None, (10, 20)), (2, CommitRef("train", 20, 1), (30,))):
        log.claim(number, {})
        log.put_base(number, base)
        for position in positions:
            commit(store, CommitRef("train", position, number))
    CommitWriter(store, LAYOUT, CommitRef("export", 0, 1)).put("half.safetensors", b"half a model")
    CommitWriter(store, LAYOUT, CommitRef("train", 40, 2)).put("half", b"half a save")
    if exported:
        commit(store, MODEL)
    if ended:
        log.put_end(2, {"stop_reason": "done"})
    return log


def test_what_broken_saves_and_exports_left_goes_also_where_no_commit_does(store: Store) -> None:
    trained(store)
    before = store.list()
    found = prune(store, LAYOUT, stage="train", keep=9, dry_run=True)
    assert (found.commits, found.leftovers, store.list()) == (frozenset(), 2, before)
    assert prune(store, LAYOUT, stage="train", keep=9) == found
    assert set(before) - set(store.list()) == {
        "model/attempt-000001/half.safetensors",
        "checkpoints/step-00000040/attempt-000002/half",
    }
    assert not prune(store, LAYOUT, stage="train", keep=9), "there is nothing left to do"


@pytest.mark.process
def test_unfinished_uploads_of_every_stage_and_attempt_are_aborted_on_s3(make_store: Any) -> None:
    store = make_store("s3")
    trained(store)
    driver = store._driver
    for key in ("checkpoints/step-00000050/attempt-000002/big", "model/attempt-000001/big", "inputs/big"):
        driver._call("create_multipart_upload", Key=driver._key(store._prefix + key))
    assert prune(store, LAYOUT, stage="train", keep=2, dry_run=True).uploads == 2
    assert prune(store, LAYOUT, stage="train", keep=2).uploads == 2
    assert prune(store, LAYOUT, stage="train", keep=2).uploads == 0
    assert store.abort_unfinished("") == 1, "what is no stage's is not prune's"


def test_all_training_state_goes_once_the_model_is_verified_and_the_run_still_counts_as_done(store: Store) -> None:
    log = trained(store)
    would = prune(store, LAYOUT, stage="train", keep=0, dry_run=True)
    assert {ref.position for ref in would.commits} == {10, 20, 30}
    assert prune(store, LAYOUT, stage="train", keep=0) == would
    assert store.list("checkpoints/") == []
    assert counting_commits(log.records(), list_commits(store, LAYOUT), LAYOUT) == [MODEL]
    assert CommitReader.open(store, LAYOUT, MODEL).read("data") == b"0"


def test_nothing_goes_while_the_model_is_missing_damaged_or_the_run_not_over(memory_store: Store) -> None:
    log = trained(memory_store, exported=False, ended=False)
    before = memory_store.list()
    with pytest.raises(RunActive):
        prune(memory_store, LAYOUT, stage="train", keep=0)
    log.put_end(2, {"stop_reason": "cancelled"})
    with pytest.raises(NoGoodCommit, match=r"newest commit is train 30 .* what the run goes on from"):
        prune(memory_store, LAYOUT, stage="train", keep=0, dry_run=True)
    commit(memory_store, MODEL)
    memory_store.put("model/attempt-000002/data", b"1")
    with pytest.raises(Damaged, match="model/attempt-000002/data"):
        prune(memory_store, LAYOUT, stage="train", keep=0)
    with pytest.raises(Damaged):
        delete_stage(memory_store, LAYOUT, stage="train", by=MODEL, fence=Fence(log, 2))
    assert set(before) <= set(memory_store.list())


def test_the_attempt_that_exported_deletes_its_training_state_and_one_that_was_superseded_does_not(
    store: Store,
) -> None:
    log = trained(store, ended=False)
    later = CommitWriter(store, LAYOUT, CommitRef("train", 50, 3))
    later.put("live", b"of an attempt newer than this one")
    assert len(delete_stage(store, LAYOUT, stage="train", by=MODEL, fence=Fence(log, 2))) == 3
    assert store.list("checkpoints/") == ["checkpoints/step-00000050/attempt-000003/live"]
    log.claim(3, {})
    commit(store, CommitRef("train", 60, 2))
    with pytest.raises(Superseded):
        delete_stage(store, LAYOUT, stage="train", by=MODEL, fence=Fence(log, 2))
    assert CommitRef("train", 60, 2) in list_commits(store, LAYOUT)


@pytest.mark.parametrize("how", ["before", "after", "torn", "fails", "answer lost"])
def test_pruning_broken_at_any_operation_leaves_whole_commits_and_is_finished_by_pruning_again(
    make_store: Any, faults: SimpleNamespace, how: str
) -> None:
    at, done = 0, False
    while not done:
        at += 1
        store = make_store("memory")
        log = trained(store)
        broken, driver = faults.break_store(store, at=at, how=how, every=True)
        with contextlib.suppress(faults.Died, CheckpointError):
            prune(broken, LAYOUT, stage="train", keep=2 if at % 2 else 0)
        done = driver.changes < at
        for ref in list_commits(store, LAYOUT):
            CommitReader.open(store, LAYOUT, ref).verify()
        assert counting_commits(log.records(), list_commits(store, LAYOUT), LAYOUT)[0] == MODEL
        prune(store, LAYOUT, stage="train", keep=0)
        assert [key for key in store.list() if not key.startswith("attempts/")] == [
            "model/attempt-000002/data", "model/attempt-000002/manifest.json",
        ]  # fmt: skip
    assert at > 15
