"""Verifying, copying and pruning whole runs, also when the copy breaks at any write."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged, NotCommitted, RunActive, Superseded
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.pruning import prune
from checkpoints.reader import CommitReader, list_commits
from checkpoints.retention import known_blocks
from checkpoints.store import Store
from checkpoints.transfer import copy_commit, copy_run, verify_commits
from checkpoints.writer import CommitWriter

FROZEN = random.Random(0).randbytes(80 * 2**10)


def step(position: int, attempt: int = 1) -> CommitRef:
    return CommitRef("train", position, attempt)


def _run(store: Store) -> Store:
    """Attempt 1 committed 10 to 40; attempt 2 began at 30 and committed 40 and 50; blocks are shared."""
    log = AttemptLog(store, TRAIN_ONLY)
    manifest = None
    for number, base, positions in ((1, None, (10, 20, 30, 40)), (2, step(30), (40, 50))):
        log.claim(number, {"number": number})
        log.put_base(number, base)
        for position in positions:
            known = known_blocks(manifest, TRAIN_ONLY) if manifest else {}
            fence = Fence(log, number)
            writer = CommitWriter(store, TRAIN_ONLY, step(position, number), fence=fence, known=known)
            writer.put("frozen", FROZEN)
            writer.put("own", b"%d" % position)
            manifest = writer.publish(meta={"position": position}, fingerprint="f", world_size=2)
    return store


def _counting(store: Store) -> list[CommitRef]:
    return counting_commits(AttemptLog(store, TRAIN_ONLY).records(), list_commits(store, TRAIN_ONLY), TRAIN_ONLY)


def test_verify_names_what_is_damaged_and_says_what_counts(store: Store) -> None:
    _run(store)
    store.put("checkpoints/step-00000020/attempt-000001/own", b"21")
    store.put("checkpoints/step-00000050/attempt-000002/manifest.json", b"{")
    reports = {report.ref: report for report in verify_commits(store, TRAIN_ONLY)}
    assert list(reports) == [step(50, 2), step(40, 2), step(40), step(30), step(20), step(10)]
    assert [ref.position for ref, report in reports.items() if report.problem] == [50, 20]
    assert "own is damaged" in str(reports[step(20)].problem)
    assert reports[step(50, 2)].manifest is None
    assert not reports[step(40)].counts, "it lies beyond the base of attempt 2"
    assert sum(report.counts for report in reports.values()) == 5


def test_damage_in_a_shared_block_shows_in_every_commit_that_uses_it(memory_store: Store) -> None:
    _run(memory_store)
    memory_store.put("checkpoints/step-00000010/attempt-000001/frozen", bytes(len(FROZEN)))
    assert all(report.problem for report in verify_commits(memory_store, TRAIN_ONLY))


@pytest.mark.parametrize("kinds", [("file", "s3"), ("s3", "memory"), ("memory", "file")])
def test_a_run_is_copied_whole_and_counts_the_same(make_store: Callable[[str], Store], kinds: tuple[str, str]) -> None:
    source, destination = _run(make_store(kinds[0])), make_store(kinds[1])
    copied = list(copy_run(source, destination, TRAIN_ONLY))
    assert copied == [step(10), step(20), step(30), step(40, 2), step(50, 2)]
    assert _counting(destination) == _counting(source)
    for ref in copied:
        reader = CommitReader.open(destination, TRAIN_ONLY, ref)
        assert reader.read("frozen") == FROZEN
        assert reader.manifest.references == (), "a copy is complete in itself"
        assert (reader.manifest.meta, reader.manifest.world_size) == ({"position": ref.position}, 2)
    assert list(copy_run(source, destination, TRAIN_ONLY)) == copied, "copying again changes nothing"
    log = AttemptLog(destination, TRAIN_ONLY)
    log.claim(3, {})
    log.put_base(3, _counting(destination)[0])


def test_a_damaged_commit_is_not_copied(memory_store: Store, file_store: Store) -> None:
    _run(memory_store)
    memory_store.put("checkpoints/step-00000020/attempt-000001/own", b"21")
    with pytest.raises(Damaged):
        copy_commit(memory_store, file_store, TRAIN_ONLY, step(20))
    assert list_commits(file_store, TRAIN_ONLY) == []
    with pytest.raises(NotCommitted):
        copy_commit(memory_store, file_store, TRAIN_ONLY, step(21))


def test_a_commit_whose_loss_was_nan_is_copied_again_and_is_the_same(make_store: Callable[[str], Store]) -> None:
    source, destination = make_store("memory"), make_store("memory")
    CommitWriter(source, TRAIN_ONLY, step(1)).publish(meta={"log_history": [{"loss": float("nan")}]})
    for _ in range(2):
        assert copy_commit(source, destination, TRAIN_ONLY, step(1)).ref == step(1)


def test_another_run_at_the_destination_is_not_overwritten(memory_store: Store, file_store: Store) -> None:
    _run(memory_store)
    writer = CommitWriter(file_store, TRAIN_ONLY, step(10))
    writer.put("other", b"1")
    writer.publish(meta={})
    with pytest.raises(AlreadyExists):
        copy_commit(memory_store, file_store, TRAIN_ONLY, step(10))
    other = file_store.child("other")
    AttemptLog(other, TRAIN_ONLY).claim(1, {"number": "another run's"})
    with pytest.raises(AlreadyExists, match=r"attempts/000001\.claim\.json"):
        list(copy_run(memory_store, other, TRAIN_ONLY))


def test_a_copy_that_went_on_by_itself_is_left_alone_though_its_records_say_the_same(make_store: Any) -> None:
    source, destination = _run(make_store("memory")), make_store("memory")
    list(copy_run(source, destination, TRAIN_ONLY))
    for store, position in ((source, 70), (destination, 60)):  # both are resumed
        log = AttemptLog(store, TRAIN_ONLY)
        log.claim(3, {"number": 3})
        log.put_base(3, step(50, 2))
        writer = CommitWriter(store, TRAIN_ONLY, step(position, 3), fence=Fence(log, 3))
        writer.put("own", b"x")
        writer.publish(meta={})
    before = {key: destination.get(key) for key in destination.list()}
    with pytest.raises(AlreadyExists, match=r"attempt 3 is not the one .* nothing was copied"):
        list(copy_run(source, destination, TRAIN_ONLY))
    assert {key: destination.get(key) for key in destination.list()} == before
    with pytest.raises(AlreadyExists):
        list(copy_run(destination, source, TRAIN_ONLY))


def test_a_copy_goes_back_to_where_it_came_from_unless_somebody_is_at_work_there(make_store: Any) -> None:
    source, destination = _run(make_store("memory")), make_store("memory")
    list(copy_run(source, destination, TRAIN_ONLY))
    log = AttemptLog(destination, TRAIN_ONLY)
    log.put_end(2, {"stop_reason": "lost"})
    log.claim(3, {})
    log.put_base(3, step(50, 2))
    writer = CommitWriter(destination, TRAIN_ONLY, step(60, 3), fence=Fence(log, 3))
    writer.put("own", b"60")
    writer.publish(meta={})
    old = AttemptLog(source, TRAIN_ONLY)
    old.renew(2, 1)
    with pytest.raises(RunActive, match="attempt 2 has not ended"):
        list(copy_run(destination, source, TRAIN_ONLY, sleep=lambda seconds: old.renew(2, 2)))
    assert old.newest() == 2
    list(copy_run(destination, source, TRAIN_ONLY, sleep=lambda seconds: None))
    assert _counting(source)[0] == step(60, 3)
    with pytest.raises(Superseded):
        Fence(old, 2).check()


def test_who_goes_on_at_the_destination_while_it_is_copied_takes_another_number(make_store: Any) -> None:
    source, destination = _run(make_store("memory")), make_store("memory")
    list(copy_run(source, destination, TRAIN_ONLY))
    log = AttemptLog(source, TRAIN_ONLY)
    log.claim(3, {})
    log.put_base(3, step(50, 2))
    writer = CommitWriter(source, TRAIN_ONLY, step(60, 3), fence=Fence(log, 3))
    writer.put("own", b"60")
    writer.publish(meta={})
    copying = copy_run(source, destination, TRAIN_ONLY)
    assert next(copying) == step(10)
    there = AttemptLog(destination, TRAIN_ONLY)
    assert there.newest() == 3
    there.claim(4, {})
    there.put_base(4, _counting(destination)[0])
    list(copying)
    assert _counting(destination)[0] == step(50, 2), "attempt 3's commits are not of attempt 4's line"


def test_a_damaged_base_is_copied_whole(make_store: Any) -> None:
    source, destination = _run(make_store("memory")), make_store("memory")
    source.put("attempts/000002.base.json", b"{")
    source.put("attempts/000001.claim.json", b"{")
    source.delete(["attempts/000001.base_copy.json"])  # as older versions left it
    list(copy_run(source, destination, TRAIN_ONLY))
    assert _counting(destination) == _counting(source)
    assert AttemptLog(destination, TRAIN_ONLY).damaged() == []
    assert len(destination.list("attempts/")) == 6
    list(copy_run(source, destination, TRAIN_ONLY))


@pytest.mark.parametrize("how", ["before", "after", "torn", "refused once", "answer lost"])
def test_a_copy_broken_at_any_write_shows_no_half_and_is_finished_by_copying_again(
    make_store: Callable[[str], Store], faults: SimpleNamespace, how: str
) -> None:
    source = _run(make_store("memory"))
    at, changes = 0, 1
    while at <= changes:
        at += 1
        destination = make_store("memory")
        broken, driver = faults.break_store(destination, at=at, how=how)
        with contextlib.suppress(faults.Died):
            list(copy_run(source, broken, TRAIN_ONLY))
        changes = driver.changes
        assert all(report.problem is None for report in verify_commits(destination, TRAIN_ONLY))
        list(copy_run(source, destination, TRAIN_ONLY))
        assert _counting(destination) == _counting(source)
    assert at > 15


def test_prune_tidies_a_run_that_has_ended(store: Store) -> None:
    _run(store)
    with pytest.raises(RunActive, match="attempt 2 has not ended"):
        prune(store, TRAIN_ONLY, stage="train", keep=2)
    AttemptLog(store, TRAIN_ONLY).put_end(2, {"stop_reason": "done"})
    before = store.list()
    would: Any = prune(store, TRAIN_ONLY, stage="train", keep=2, dry_run=True)
    assert would.commits == {step(10), step(20), step(40)}
    assert store.list() == before
    assert prune(store, TRAIN_ONLY, stage="train", keep=2) == would
    assert list_commits(store, TRAIN_ONLY) == [step(50, 2), step(40, 2), step(30)]
    assert store.list("checkpoints/step-00000010/") == ["checkpoints/step-00000010/attempt-000001/frozen"]
    assert all(report.problem is None for report in verify_commits(store, TRAIN_ONLY))
    assert not prune(store, TRAIN_ONLY, stage="train", keep=2)
