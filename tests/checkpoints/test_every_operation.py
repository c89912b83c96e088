"""Every operation of an attempt or a copy, reads and listings too, refused for good or hung for as long as it takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from attempt_life import check, work

from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError, StoreFull, Superseded
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.transfer import copy_run, verify_commits

MakeStore = Callable[[str], Store]


def _begun(make_store: MakeStore, acknowledged: list[CommitRef], kind: str = "memory") -> Store:
    store = make_store(kind)
    work(store, acknowledged, 1, 1, 4)
    return store


@pytest.mark.parametrize(("kind", "stride"), [("memory", 1), ("file", 7)])
def test_an_operation_that_fails_for_good_ends_the_attempt_and_harms_nothing(
    make_store: MakeStore, faults: SimpleNamespace, kind: str, stride: int
) -> None:
    at, done = 0, False
    while not done:
        at += stride
        acknowledged: list[CommitRef] = []
        store = _begun(make_store, acknowledged, kind)
        broken, driver = faults.break_store(store, at=at, how="fails", every=True)
        problem: CheckpointError | None = None
        try:
            work(broken, acknowledged, 2, 4, 8)
        except CheckpointError as exc:
            problem = exc
        done = driver.changes < at
        assert (problem is None) == done
        assert done or isinstance(problem, StoreFull), "said what it was"
        counting = check(store, acknowledged)
        third: list[CommitRef] = []
        work(store, third, 3, counting[0].position + 1, counting[0].position + 4)
        check(store, third)
    assert at > 40, "the scenario was too short to break anything"


@pytest.mark.parametrize("how", ["hangs before", "hangs after"])
def test_an_attempt_that_hangs_anywhere_and_wakes_up_after_its_successor_harms_nothing(
    make_store: MakeStore, faults: SimpleNamespace, how: str
) -> None:
    """The hung operation, a put of a manifest or a delete perhaps, arrives when another attempt owns the run."""
    at, done, superseded = 0, False, 0
    with ThreadPoolExecutor(1) as pool:
        while not done:
            at += 1
            acknowledged: list[CommitRef] = []
            store = _begun(make_store, acknowledged)
            broken, driver = faults.break_store(store, at=at, how=how, every=True)
            late: Future[None] = pool.submit(work, broken, acknowledged, 2, 4, 8)
            late.add_done_callback(lambda _, driver=driver: driver.hung.set())
            assert driver.hung.wait(30)
            done = driver.changes < at
            third: list[CommitRef] = []
            newest = check(store, acknowledged)[0].position
            work(store, third, 3, newest + 1, newest + 4)
            counted = check(store, third)
            driver.release.set()
            problem = late.exception(timeout=30)
            assert problem is None or isinstance(problem, CheckpointError)
            superseded += isinstance(problem, Superseded)
            assert check(store, third) == counted, "what counts is what counted before it woke up"
            assert not acknowledged[3:] or acknowledged[-1].position <= newest, "it committed nothing after it woke up"
            fourth: list[CommitRef] = []
            work(store, fourth, 4, counted[0].position + 1, counted[0].position + 3)
            check(store, fourth)
    assert at > 40
    assert superseded > at // 2


@pytest.mark.parametrize("how", ["fails", "hangs before", "hangs after"])
@pytest.mark.parametrize(
    ("side", "kind", "stride"),
    [("source", "memory", 1), ("destination", "memory", 1), ("source", "file", 3), ("destination", "file", 3)],
)
def test_a_copy_whose_every_operation_fails_or_hangs_shows_no_half_and_is_finished_by_copying_again(
    make_store: MakeStore, faults: SimpleNamespace, how: str, side: str, kind: str, stride: int
) -> None:
    """The one that hangs wakes up after another one has finished: they do the same, so nothing differs."""
    acknowledged: list[CommitRef] = []
    source = _begun(make_store, acknowledged, kind)
    at, done = 0, False
    with ThreadPoolExecutor(1) as pool:
        while not done:
            at += stride
            destination = make_store(kind)
            broken, driver = faults.break_store(source if side == "source" else destination, at=at, how=how, every=True)
            ends = (broken, destination) if side == "source" else (source, broken)
            copying = pool.submit(lambda ends=ends: list(copy_run(*ends, TRAIN_ONLY)))
            copying.add_done_callback(lambda _, driver=driver: driver.hung.set())
            assert driver.hung.wait(30)
            done = driver.changes < at
            assert all(report.problem is None for report in verify_commits(destination, TRAIN_ONLY))
            list(copy_run(source, destination, TRAIN_ONLY))
            driver.release.set()
            problem = copying.exception(timeout=30)
            assert isinstance(problem, StoreFull) if how == "fails" and not done else problem is None
            assert check(destination, acknowledged) == list_commits(source, TRAIN_ONLY)
    assert at > 10


def test_a_flipped_bit_or_a_cut_in_any_object_of_a_run_is_named_and_survived_where_anything_is_left(
    make_store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    store = _begun(make_store, [])
    AttemptLog(store, TRAIN_ONLY).renew(1, 7)
    AttemptLog(store, TRAIN_ONLY).put_end(1, {"stop_reason": "preempted"})
    work(store, [], 2, 4, 6)
    rng, kinds = random.Random(5), set()
    for key in store.list():
        good, kind = store.get(key), key.rpartition("/")[2].removeprefix("00000")
        kinds.add(kind)
        flipped = bytearray(good)
        ends = good.rfind(b'"body_sha256"') if kind.endswith(".json") and b"body_sha256" in good else len(good)
        at = rng.randrange(8 * ends)  # a flip in the digest's own name leaves what it stands for as it was
        flipped[at // 8] ^= 1 << at % 8
        for bad in (bytes(flipped), good[: len(good) // 2], b""):
            store.put(key, bad)
            caplog.clear()
            whole, problems = _look(store)
            if kind == "frozen":
                assert whole == [], "all commits share it"
            elif key.startswith("checkpoints/step-00000005"):
                assert whole[0] == 4
            else:
                assert whole[0] == 5
            if key.startswith("checkpoints/"):
                assert key in "".join(problems)
            elif not kind.endswith("lease.json"):  # it is rewritten all the time, and only its change means something
                assert [one.key for one in AttemptLog(store, TRAIN_ONLY).damaged()] == [key]
                assert key in caplog.text or kind.endswith("base_copy.json"), "which nobody reads until it is needed"
        store.put(key, good)
    records = {f"{number}.{kind}.json" for number in (1, 2) for kind in ("claim", "base", "base_copy")}
    assert kinds == {*records, "1.lease.json", "1.end.json", "manifest.json", "frozen", "changing"}


def _look(store: Store) -> tuple[list[int], list[str]]:
    """As a start would: positions of the counting commits that are whole, newest first, and what is said of others."""
    counting = counting_commits(AttemptLog(store, TRAIN_ONLY).records(), list_commits(store, TRAIN_ONLY), TRAIN_ONLY)
    reports = [report for report in verify_commits(store, TRAIN_ONLY) if report.ref in counting]
    whole = [report.ref.position for report in reports if report.problem is None]
    return whole, [report.problem for report in reports if report.problem is not None]
