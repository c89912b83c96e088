"""Commits: what is published is read back verified, and no failure anywhere makes half a commit visible."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from attempt_life import check, work

from checkpoints.attempts import AttemptLog
from checkpoints.barrier import Alone, RanksParted, ThreadExchange
from checkpoints.errors import AlreadyExists, Damaged, NotCommitted, SaveFailed, StoreFull, Superseded
from checkpoints.fence import Fence
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader, group_blocks, list_commits
from checkpoints.retention import known_blocks
from checkpoints.store import Store
from checkpoints.writer import CommitWriter, block_spans, commit_together

REF = CommitRef("train", 10, 1)
KIB = 2**10


def _blob(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_was_published_is_read_back(store: Store) -> None:
    data = _blob(1, 33 * 2**20)
    writer = CommitWriter(store, TRAIN_ONLY, REF)
    entry = writer.put("large.bin", memoryview(data))
    writer.put("rows.jsonl", b"{}\n")
    writer.put("empty", b"")
    writer.publish(fingerprint="f", meta={"losses": [1.5, None], "text": "é"})
    assert [block.size for block in entry.blocks] == [16 * 2**20, 16 * 2**20, 2**20]

    assert list_commits(store, TRAIN_ONLY) == [REF]
    reader = CommitReader.open(store, TRAIN_ONLY, REF)
    assert reader.manifest.meta == {"losses": [1.5, None], "text": "é"}
    assert reader.manifest.fingerprint == "f"
    assert reader.read("large.bin") == data
    assert reader.read("rows.jsonl") == b"{}\n"
    assert reader.read("empty") == b""
    assert reader.read_range("large.bin", 16 * 2**20 - 7, 20) == data[16 * 2**20 - 7 : 16 * 2**20 + 13]
    assert reader.read_range("large.bin", len(data), 0) == b""
    reader.verify()


def test_a_ranged_read_fetches_only_the_blocks_it_needs(memory_store: Store) -> None:
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    writer.put("a", bytes(100), cuts=[10, 20, 60])
    writer.publish(meta={})
    reader = CommitReader.open(memory_store, TRAIN_ONLY, REF)
    assert [(placed.offset, placed.block.size) for placed in reader.blocks("a", 15, 10)] == [(10, 10), (20, 40)]
    with pytest.raises(ValueError, match="has 100 bytes: there are no 10 from 95 on"):
        reader.read_range("a", 95, 10)
    with pytest.raises(KeyError, match="no object 'b'"):
        reader.read("b")


def test_blocks_side_by_side_are_read_by_one_request(memory_store: Store) -> None:
    half = 8 * 2**20
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    writer.put("a", bytes(2 * half + 30), cuts=[10, 20, half, 2 * half])
    writer.put("b", b"1234", cuts=[2])
    writer.publish(meta={})
    reader = CommitReader.open(memory_store, TRAIN_ONLY, REF)
    placed = [*reader.blocks("a"), *reader.blocks("b")]
    spans = group_blocks(placed)
    assert [[block.block.size for block in span] for span in spans] == [[10, 10, half - 20, half], [30], [2, 2]]
    assert [len(part) for part in reader.read_span(spans[0])] == [10, 10, half - 20, half]
    assert group_blocks([placed[0], placed[2]]) == [(placed[0],), (placed[2],)], "a gap is not read over"


def test_blocks_cover_everything_once_and_begin_at_the_cuts() -> None:
    limit = 16 * 2**20
    assert list(block_spans(0)) == []
    assert list(block_spans(5, [0, 2, 2, 5, 9])) == [(0, 2), (2, 5)]
    spans = list(block_spans(3 * limit + 5, [limit + 1]))
    assert spans[0] == (0, limit)
    assert (limit + 1, 2 * limit + 1) in spans
    assert all(end - start <= limit for start, end in spans)
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]


def test_nothing_is_visible_before_the_manifest(memory_store: Store) -> None:
    CommitWriter(memory_store, TRAIN_ONLY, REF).put("shard", b"data")
    assert list_commits(memory_store, TRAIN_ONLY) == []
    with pytest.raises(NotCommitted, match=r"is not committed: 1 objects are there, manifest\.json is not") as caught:
        CommitReader.open(memory_store, TRAIN_ONLY, REF)
    assert caught.value.prefix == "checkpoints/step-00000010/attempt-000001/"


def test_the_same_commit_cannot_be_made_twice(memory_store: Store) -> None:
    CommitWriter(memory_store, TRAIN_ONLY, REF).publish(meta={"by": "first"})
    with pytest.raises(AlreadyExists):
        CommitWriter(memory_store, TRAIN_ONLY, REF).publish(meta={"by": "second"})
    assert CommitReader.open(memory_store, TRAIN_ONLY, REF).manifest.meta == {"by": "first"}


def test_an_object_is_put_once_per_commit(memory_store: Store) -> None:
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    writer.put("a", b"1")
    for name in ("a", "manifest.json"):
        with pytest.raises(ValueError, match="an object of a commit is written once"):
            writer.put(name, b"2")


def test_a_superseded_attempt_publishes_nothing(memory_store: Store, log: AttemptLog) -> None:
    log.claim(1, {})
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF, fence=Fence(log, 1))
    writer.put("a", b"1")
    log.claim(2, {})
    with pytest.raises(Superseded):
        writer.publish(meta={})
    assert list_commits(memory_store, TRAIN_ONLY) == []


def test_unchanged_blocks_are_referenced_and_not_stored_again(store: Store) -> None:
    frozen, first, second = _blob(1, 300 * KIB), _blob(2, 100 * KIB), _blob(3, 100 * KIB)
    writer = CommitWriter(store, TRAIN_ONLY, REF)
    writer.put("state", frozen + first, cuts=[300 * KIB])
    one = writer.publish(meta={})
    manifests = [one]
    for position, changed in ((20, second), (30, second + b"more")):
        ref = CommitRef("train", position, 1)
        writer = CommitWriter(store, TRAIN_ONLY, ref, known=known_blocks(manifests[-1], TRAIN_ONLY))
        writer.put("state", frozen + changed, cuts=[300 * KIB])
        manifests.append(writer.publish(meta={}))
        reader = CommitReader.open(store, TRAIN_ONLY, ref)
        assert reader.manifest == manifests[-1]
        assert reader.read("state") == frozen + changed
        assert reader.manifest.stored_bytes == len(changed)
        assert reader.manifest.references == ("checkpoints/step-00000010/attempt-000001/",), "chains do not grow"
        assert store.size(f"{TRAIN_ONLY.commit_prefix(ref)}state") == len(changed)


def test_a_wholly_unchanged_object_takes_no_bytes(memory_store: Store) -> None:
    frozen = _blob(1, 300 * KIB)
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    writer.put("frozen", frozen)
    one = writer.publish(meta={})
    ref = CommitRef("train", 20, 1)
    writer = CommitWriter(memory_store, TRAIN_ONLY, ref, known=known_blocks(one, TRAIN_ONLY))
    writer.put("frozen", frozen)
    writer.publish(meta={})
    assert memory_store.list("checkpoints/step-00000020/") == ["checkpoints/step-00000020/attempt-000001/manifest.json"]
    assert CommitReader.open(memory_store, TRAIN_ONLY, ref).read("frozen") == frozen


@pytest.mark.parametrize("harm", ["delete", "truncate"])
def test_a_reference_that_broke_is_found_before_the_manifest_is_put(memory_store: Store, harm: str) -> None:
    writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
    writer.put("frozen", _blob(1, 300 * KIB))
    one = writer.publish(meta={})
    key = "checkpoints/step-00000010/attempt-000001/frozen"
    if harm == "delete":
        memory_store.delete([key])
    else:
        memory_store.put(key, _blob(1, 299 * KIB))
    ref = CommitRef("train", 20, 1)
    writer = CommitWriter(memory_store, TRAIN_ONLY, ref, known=known_blocks(one, TRAIN_ONLY))
    writer.put("frozen", _blob(1, 300 * KIB))
    with pytest.raises(Damaged, match="it is gone" if harm == "delete" else f"{299 * KIB} are there"):
        writer.publish(meta={})
    assert list_commits(memory_store, TRAIN_ONLY) == [REF]


# --- ranks ----------------------------------------------------------------------------------------------------------


def _on_threads(world_size: int, act: Callable[[ThreadExchange], Any], *, timeout_s: float = 20) -> list[Any]:
    """Run `act` on every rank; an exception is its rank's result."""

    def guarded(exchange: ThreadExchange) -> Any:
        try:
            return act(exchange)
        except Exception as exc:  # noqa: BLE001 - the exception is what the test looks at
            return exc

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(guarded, ThreadExchange.seats(world_size, timeout_s=timeout_s)))


def _save(store: Store, exchange: Any, put: Callable[[CommitWriter], None], **more: Any) -> Manifest:
    writer = CommitWriter(store, TRAIN_ONLY, REF, **more)
    return commit_together(writer, exchange, put, meta={"from": exchange.rank})


def test_all_ranks_commit_together(memory_store: Store) -> None:
    manifests = _on_threads(
        3, lambda seat: _save(memory_store, seat, lambda w: void(w.put(f"shard-{seat.rank}", b"x" * (seat.rank + 1))))
    )
    assert manifests[0] == manifests[1] == manifests[2]
    assert manifests[0].world_size == 3
    assert manifests[0].meta == {"from": 0}
    assert {entry.name: entry.size for entry in manifests[0].objects} == {"shard-0": 1, "shard-1": 2, "shard-2": 3}
    CommitReader.open(memory_store, TRAIN_ONLY, REF).verify()


def void(value: object) -> None:
    return None


def test_a_failure_on_one_rank_reaches_every_rank_and_nothing_is_committed(memory_store: Store) -> None:
    def put(seat: ThreadExchange) -> Callable[[CommitWriter], None]:
        def act(writer: CommitWriter) -> None:
            if seat.rank == 1:
                raise OSError("the disk of rank 1 is on fire")
            writer.put(f"shard-{seat.rank}", b"x")

        return act

    errors = _on_threads(3, lambda seat: _save(memory_store, seat, put(seat)))
    assert [type(error) for error in errors] == [SaveFailed] * 3
    for error in errors:
        assert error.failures == {1: "OSError: the disk of rank 1 is on fire"}
        assert str(error) == (
            "train 10 (attempt 1) was not committed; the commit before it is unharmed. "
            "rank 1: OSError: the disk of rank 1 is on fire."
        )
    assert list_commits(memory_store, TRAIN_ONLY) == []


def test_the_same_trouble_on_several_ranks_keeps_its_class(memory_store: Store) -> None:
    def full(writer: CommitWriter) -> None:
        raise StoreFull("no space left.")

    def act(seat: ThreadExchange) -> Any:
        put = full if seat.rank else lambda w: void(w.put("s", b""))
        return _save(memory_store, seat, put)

    errors = _on_threads(3, act)
    assert [type(error) for error in errors] == [StoreFull] * 3
    assert "rank 1: no space left. rank 2: no space left." in str(errors[0])


def test_what_keeps_rank_0_from_publishing_is_raised_on_every_rank(memory_store: Store, log: AttemptLog) -> None:
    log.claim(1, {})
    log.claim(2, {})
    fence = Fence(log, 1)
    errors = _on_threads(
        2, lambda seat: _save(memory_store, seat, lambda w: void(w.put(f"s{seat.rank}", b"")), fence=fence)
    )
    assert [type(error) for error in errors] == [Superseded] * 2
    assert (errors[1].attempt, errors[1].newest) == (1, 2)


def test_ranks_that_store_different_commits_commit_none(memory_store: Store) -> None:
    def act(seat: ThreadExchange) -> Any:
        writer = CommitWriter(memory_store, TRAIN_ONLY, CommitRef("train", 10 + seat.rank, 1))
        return commit_together(writer, seat, lambda w: void(w.put(f"s{seat.rank}", b"x")), meta={})

    errors = _on_threads(2, act)
    assert [type(error) for error in errors] == [SaveFailed] * 2
    assert "rank 1: it stored train 11 (attempt 1), while rank 0 stored train 10 (attempt 1)" in str(errors[0])
    assert list_commits(memory_store, TRAIN_ONLY) == []


def test_whatever_keeps_rank_0_from_publishing_reaches_every_rank(memory_store: Store) -> None:
    def act(seat: ThreadExchange) -> Any:
        writer = CommitWriter(memory_store, TRAIN_ONLY, REF)
        return commit_together(writer, seat, lambda w: void(w.put(f"s{seat.rank}", b"")), meta={"loss": object()})

    errors = _on_threads(2, act)
    assert [type(error) for error in errors] == [SaveFailed] * 2
    assert "rank 0: TypeError: Object of type object is not JSON serializable" in str(errors[1])


def test_a_rank_that_never_comes_parts_the_others(memory_store: Store) -> None:
    def act(seat: ThreadExchange) -> Sequence[Any] | None:
        return None if seat.rank == 1 else seat.gather("here")

    result = _on_threads(2, act, timeout_s=0.1)
    assert isinstance(result[0], RanksParted)
    assert "rank 0 of 2 waited 0.1 s and not all came" in str(result[0])


def test_meetings_do_not_mix_up_their_values() -> None:
    def act(seat: ThreadExchange) -> list[Sequence[Any]]:
        return [seat.gather((seat.rank, number)) for number in range(50)]

    expected = [[(rank, number) for rank in range(4)] for number in range(50)]
    assert _on_threads(4, act) == [expected] * 4
    assert Alone().gather("x") == ["x"]


# --- break every write ----------------------------------------------------------------------------------------------


_WAYS = ["before", "after", "torn", "refused once", "answer lost"]


@pytest.mark.parametrize(
    ("kind", "how"),
    [("memory", how) for how in _WAYS]
    + [("file", how) for how in _WAYS]
    + [pytest.param("s3", how, marks=pytest.mark.process if how == "after" else pytest.mark.slow) for how in _WAYS],
)
def test_every_change_broken_loses_nothing_and_shows_no_half(
    make_store: Callable[[str], Store], faults: SimpleNamespace, kind: str, how: str
) -> None:
    at, done = 0, False
    while not done:
        at += 1 if kind != "s3" else 5  # S3 by sample: each round is a hundred requests
        store = make_store(kind)
        acknowledged: list[CommitRef] = []
        work(store, acknowledged, 1, 1, 4)
        broken, driver = faults.break_store(store, at=at, how=how)
        died = False
        try:
            work(broken, acknowledged, 2, 4, 10)
        except faults.Died:
            died = True
        assert died == (how in ("before", "after", "torn") and driver.changes >= at)
        done = driver.changes < at
        counting = check(store, acknowledged)
        third: list[CommitRef] = []
        work(store, third, 3, counting[0].position + 1, counting[0].position + 4)
        check(store, third)
    assert at >= 15, "the scenario was too short to break anything"


def test_two_attempts_racing_for_a_number_leave_one(memory_store: Store) -> None:
    gate = threading.Barrier(4, timeout=10)

    def claim(me: int) -> bool:
        gate.wait()
        try:
            AttemptLog(memory_store, TRAIN_ONLY).claim(1, {"me": me})
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(claim, range(4))) == 1


@pytest.mark.parametrize("answers", ["arrive", "are lost"])
def test_two_writers_of_one_attempt_or_one_step_have_one_winner_each(
    store: Store, faults: SimpleNamespace, answers: str
) -> None:
    """One of the two, with lost answers, finds out only by its own second try whether the first had won."""
    tries = 200
    other, _ = faults.break_store(store, at=1 if answers == "are lost" else 0, how="answer lost always")
    gate = threading.Barrier(2, timeout=60)

    def contend(mine: Store) -> list[tuple[bool, bool]]:
        log, won = AttemptLog(mine, TRAIN_ONLY), []
        for number in range(1, tries + 1):
            gate.wait()
            claimed = _wins(lambda: log.claim(number, {}))  # noqa: B023 - called at once
            gate.wait()
            writer = CommitWriter(mine, TRAIN_ONLY, CommitRef("train", number, 1))
            won.append((claimed, _wins(lambda: writer.publish(meta={}))))  # noqa: B023 - called at once
        return won

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(contend, (store, other))
    for (claimed, committed), (claimed_too, committed_too) in zip(one, two, strict=True):
        assert claimed + claimed_too == 1
        assert committed + committed_too == 1
    assert len(list_commits(store, TRAIN_ONLY)) == AttemptLog(store, TRAIN_ONLY).newest() == tries


def _wins(act: Callable[[], Any]) -> bool:
    try:
        act()
    except AlreadyExists:
        return False
    return True
