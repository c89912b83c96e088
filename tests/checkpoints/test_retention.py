"""Retention: what stays, two phases, manifest before objects, and never what a staying manifest uses."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric, best_commit
from checkpoints.errors import Damaged, Superseded
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.manifest import Manifest
from checkpoints.pruning import prune
from checkpoints.reader import CommitReader, list_commits
from checkpoints.retention import Retention, known_blocks, plan_retention
from checkpoints.store import Store
from checkpoints.writer import CommitWriter


def step(position: int, attempt: int = 1) -> CommitRef:
    return CommitRef("train", position, attempt)


def attempt(number: int, base: CommitRef | None = None) -> AttemptRecord:
    return AttemptRecord(number, {}, True, base, None)


def _plan(commits: list[CommitRef], records: list[AttemptRecord], **more: Any) -> set[CommitRef]:
    newest = max(record.number for record in records)
    return plan_retention(commits, records, TRAIN_ONLY, stage="train", attempt=newest, **{"keep": 2, **more})


def test_the_newest_stay_and_every_nth() -> None:
    commits = [step(n) for n in (10, 20, 30, 40, 50)]
    assert _plan(commits, [attempt(1)]) == {step(10), step(20), step(30)}
    assert _plan(commits, [attempt(1)], keep=3) == {step(10), step(20)}
    assert _plan(commits, [attempt(1)], keep_every=20) == {step(10), step(30)}
    assert _plan(commits, [attempt(1)], pinned=[step(10)]) == {step(20), step(30)}


def test_two_stay_even_when_fewer_are_wanted() -> None:
    assert _plan([step(10), step(20), step(30)], [attempt(1)], keep=0) == {step(10)}


def test_the_base_of_any_attempt_stays() -> None:
    records = [attempt(1), attempt(2, step(10)), attempt(3, step(10))]
    commits = [step(10), step(20), step(20, 3), step(30, 3), step(40, 3)]
    assert _plan(commits, records) == {step(20), step(20, 3)}


def test_what_a_zombie_left_goes_and_what_a_newer_attempt_made_is_not_touched() -> None:
    records = [attempt(1), attempt(2, step(10))]
    commits = [step(10), step(20), step(30), step(20, 2), step(30, 2), step(40, 3)]
    assert _plan(commits, records) == {step(20), step(30)}


@given(
    st.lists(st.builds(step, st.integers(0, 8), st.integers(1, 4)), max_size=20, unique=True),
    st.lists(st.integers(0, 8), min_size=1, max_size=4),
    st.integers(0, 4),
)
def test_whatever_happened_the_newest_two_and_all_bases_stay(
    commits: list[CommitRef], bases: list[int], keep: int
) -> None:
    records = [attempt(1)] + [attempt(n, step(position, n - 1)) for n, position in enumerate(bases[1:], 2)]
    doomed = _plan(commits, records, keep=keep)
    counting = counting_commits(records, commits, TRAIN_ONLY)
    assert not doomed & set(counting[:2])
    assert not doomed & {record.base for record in records}


class _Run:
    """An attempt that commits and lets retention follow."""

    def __init__(self, store: Store, number: int = 1, base: CommitRef | None = None, **keep: Any) -> None:
        self.store, self.number, self.log = store, number, AttemptLog(store, TRAIN_ONLY)
        self.log.claim(number, {})
        self.log.put_base(number, base)
        self.fence = Fence(self.log, number)
        self.retention = Retention(store, TRAIN_ONLY, stage="train", fence=self.fence, **{"keep": 2, **keep})

    def commit(
        self, position: int, data: bytes = b"", known: Manifest | None = None, loss: float | None = None
    ) -> Manifest:
        blocks = known_blocks(known, TRAIN_ONLY) if known else {}
        writer = CommitWriter(self.store, TRAIN_ONLY, step(position, self.number), fence=self.fence, known=blocks)
        writer.put("data", data)
        writer.put("own", b"%d" % position)
        return writer.publish(meta={} if loss is None else {"metrics": {"loss": loss}})

    def commit_and_tidy(self, position: int, **more: Any) -> tuple[Manifest, set[CommitRef]]:
        manifest = self.commit(position, **more)
        return manifest, self.retention.after_commit(manifest)

    def positions(self) -> list[int]:
        return [ref.position for ref in list_commits(self.store, TRAIN_ONLY)]


def test_what_is_marked_at_one_save_is_deleted_at_the_next(store: Store) -> None:
    run = _Run(store)
    deleted = [run.commit_and_tidy(position)[1] for position in (10, 20, 30, 40, 50)]
    assert deleted == [set(), set(), set(), {step(10)}, {step(20)}]
    assert run.positions() == [50, 40, 30]
    assert store.list("checkpoints/step-00000010/") == []


def test_a_superseded_attempt_deletes_nothing(memory_store: Store) -> None:
    run = _Run(memory_store)
    for position in (10, 20, 30):
        run.commit_and_tidy(position)
    manifest = run.commit(40)
    before = memory_store.list()
    AttemptLog(memory_store, TRAIN_ONLY).claim(2, {})
    with pytest.raises(Superseded):
        run.retention.after_commit(manifest)
    assert memory_store.list("checkpoints/") == [key for key in before if key.startswith("checkpoints/")]


def test_a_block_in_use_outlives_its_commit_and_then_goes(store: Store) -> None:
    frozen = random.Random(1).randbytes(100 * 1024)
    run = _Run(store)
    manifest, _ = run.commit_and_tidy(10, data=frozen)
    for position in (20, 30, 40, 50):
        manifest, _ = run.commit_and_tidy(position, data=frozen, known=manifest)
    key = "checkpoints/step-00000010/attempt-000001/data"
    assert store.list("checkpoints/step-00000010/") == [key], "the manifest and what nobody uses are gone"
    assert CommitReader.open(store, TRAIN_ONLY, step(50)).read("data") == frozen
    for position in (60, 70, 80, 90):  # the frozen part changed: nobody refers to the first commit any more
        run.commit_and_tidy(position, data=b"other")
    assert store.list("checkpoints/step-00000010/") == []


def test_the_next_attempt_sweeps_what_dead_ones_left(file_store: Store) -> None:
    first = _Run(file_store)
    for position in (10, 20):
        first.commit_and_tidy(position)
    CommitWriter(file_store, TRAIN_ONLY, step(30)).put("half", b"a save that never ended")
    torn = file_store._driver._root / "checkpoints/step-00000030/attempt-000001/.tmp-0123"  # type: ignore[attr-defined]
    torn.write_bytes(b"a file that was being written")
    second = _Run(file_store, 2, step(20))
    live = CommitWriter(file_store, TRAIN_ONLY, step(99, 3))
    live.put("half", b"of an attempt newer than the one that sweeps")
    second.commit_and_tidy(30)
    assert file_store.list("checkpoints/step-00000030/") == [
        "checkpoints/step-00000030/attempt-000002/data",
        "checkpoints/step-00000030/attempt-000002/manifest.json",
        "checkpoints/step-00000030/attempt-000002/own",
    ]
    assert not torn.exists()
    assert len(file_store.list("checkpoints/step-00000099/")) == 1


def test_unfinished_uploads_of_dead_attempts_are_aborted_on_s3(make_store: Any, s3_options: dict[str, str]) -> None:
    store = make_store("s3")
    driver = store._driver
    first = _Run(store)
    first.commit_and_tidy(10)
    for attempt_number in (1, 2):
        key = f"{TRAIN_ONLY.commit_prefix(step(20, attempt_number))}big"
        driver._call("create_multipart_upload", Key=driver._key(key))
    second = _Run(store, 2, step(10))
    second.commit_and_tidy(30)
    uploads = driver._call("list_multipart_uploads", Prefix=driver._key("")).get("Uploads", [])
    assert [upload["Key"].split("/")[-2] for upload in uploads] == ["attempt-000002"]
    assert store.abort_unfinished("") == 1


def test_a_manifest_that_cannot_be_read_stops_deleting(memory_store: Store) -> None:
    run = _Run(memory_store)
    for position in (10, 20, 30):
        run.commit_and_tidy(position)
    memory_store.put("checkpoints/step-00000030/attempt-000001/manifest.json", b"{")
    before = memory_store.list()
    again = Retention(memory_store, TRAIN_ONLY, stage="train", fence=run.fence, keep=2)
    manifest = run.commit(40)
    with pytest.raises(Damaged):
        again.after_commit(manifest)
    assert set(before) <= set(memory_store.list())


LOSS = Metric("loss")


def test_the_best_by_a_metric_stays_until_a_better_one_comes(store: Store) -> None:
    run = _Run(store, best_by=LOSS)
    for position, loss in ((10, 3.0), (20, 1.5), (30, 2.0), (40, None), (50, 1.5), (60, float("nan")), (70, 1.6)):
        run.commit_and_tidy(position, loss=loss)
    assert run.positions() == [70, 60, 50, 20], "20 is the earliest of equals; 50 is marked and goes next"
    run.commit_and_tidy(80, loss=1.0)
    run.commit_and_tidy(90)
    run.commit_and_tidy(100)
    run.commit_and_tidy(110)
    assert run.positions() == [110, 100, 90, 80]
    assert best_commit(store, TRAIN_ONLY, list_commits(store, TRAIN_ONLY), LOSS) == step(80)


def test_the_best_may_be_the_highest() -> None:
    from checkpoints.best import best_of

    manifests = [
        Manifest(step(n), 1, "", (), (), {"metrics": {"score": score}})
        for n, score in ((10, 0.5), (20, 0.9), (30, 0.9), (40, None), (50, True), (60, "1.0"))
    ]
    assert best_of(manifests, Metric("score", higher_is_better=True)) == step(20)
    assert best_of(manifests, LOSS) is None


def test_the_best_of_an_older_attempt_stays_and_one_that_does_not_count_is_nobodys_best(memory_store: Store) -> None:
    first = _Run(memory_store, best_by=LOSS)
    for position, loss in ((10, 2.0), (20, 1.0), (30, 3.0), (40, 0.1)):
        first.commit_and_tidy(position, loss=loss)
    second = _Run(memory_store, 2, step(30), best_by=LOSS)  # 40 is of a line that was given up
    for position in (40, 50, 60, 70):
        second.commit_and_tidy(position, loss=2.5)
    assert set(second.positions()) == {70, 60, 50, 30, 20}


def test_an_unreadable_manifest_is_nobodys_best(memory_store: Store) -> None:
    run = _Run(memory_store, best_by=LOSS)
    for position, loss in ((10, 0.5), (20, 1.0)):
        run.commit_and_tidy(position, loss=loss)
    memory_store.put("checkpoints/step-00000010/attempt-000001/manifest.json", b"{")
    assert best_commit(memory_store, TRAIN_ONLY, list_commits(memory_store, TRAIN_ONLY), LOSS) == step(20)


def test_pruning_keeps_the_best(memory_store: Store) -> None:
    run = _Run(memory_store, keep=9)
    for position, loss in ((10, 2.0), (20, 1.0), (30, 3.0), (40, 3.0)):
        run.commit_and_tidy(position, loss=loss)
    run.log.put_end(1, {"stop_reason": "done"})
    assert prune(memory_store, TRAIN_ONLY, stage="train", keep=2, best_by=LOSS).commits == {step(10)}
    assert prune(memory_store, TRAIN_ONLY, stage="train", keep=2).commits == {step(20)}
