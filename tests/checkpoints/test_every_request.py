"""Every request of a multipart upload broken, every operation of a claim without numbers, and of two ranks' commit."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from attempt_life import check, work

from checkpoints.attempts import AttemptLog, claim_next
from checkpoints.barrier import ThreadExchange
from checkpoints.errors import CheckpointError, RunActive, StoreUnreachable
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.manifest import Manifest
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from checkpoints.writer import CommitWriter, commit_together

MakeStore = Callable[[str], Store]
_BIG = random.Random(9).randbytes(17 * 2**20)  # three parts


class BrokenRequests:
    """Breaks the `at`-th request of an S3 driver: before it is sent, after its answer, or for good from there on."""

    def __init__(self, driver: Any, *, at: int, how: str) -> None:
        self._call, self._at, self._how = driver._call, at, how
        self._lock = threading.Lock()
        self.requests = 0

    def __call__(self, verb: str, **arguments: Any) -> Any:
        with self._lock:
            self.requests += 1
            number = self.requests
        if number == self._at if self._how != "for good" else number >= self._at:
            if self._how == "after":
                self._call(verb, **arguments)
            raise ConnectionResetError("the connection broke")
        return self._call(verb, **arguments)


@pytest.mark.process
@pytest.mark.parametrize(
    "how", ["after", *(pytest.param(how, marks=pytest.mark.slow) for how in ("before", "for good"))]
)
def test_an_upload_in_parts_broken_at_any_request_is_whole_or_not_there_and_what_dangles_is_swept(
    make_store: MakeStore, how: str
) -> None:
    at, done = 0, False
    while not done:
        at += 1
        store = make_store("s3")
        driver: Any = store._driver
        healthy = driver._call
        driver._call = broken = BrokenRequests(driver, at=at, how=how)
        problem: CheckpointError | None = None
        try:
            store.put("checkpoints/big", _BIG)
        except CheckpointError as exc:
            problem = exc
        driver._call = healthy
        done = broken.requests < at
        if how == "for good" and not done:
            assert isinstance(problem, StoreUnreachable)
            assert store.list() == [], "nobody sees half of it"
        else:
            assert problem is None
            assert store.get("checkpoints/big") == _BIG
        store.abort_unfinished("")
        assert driver._call("list_multipart_uploads", Prefix=driver._key("")).get("Uploads", []) == []
        store.put("checkpoints/big", _BIG[::-1])
        assert store.size("checkpoints/big") == len(_BIG)
    assert at >= 6, "create, three parts, complete"


@pytest.mark.parametrize("how", ["before", "after", "torn", "fails", "refused once", "answer lost"])
def test_a_claim_without_numbers_broken_at_any_operation_leaves_one_newest_attempt(
    make_store: MakeStore, faults: SimpleNamespace, how: str
) -> None:
    at, done = 0, False
    while not done:
        at += 1
        store, acknowledged = make_store("memory"), list[CommitRef]()
        work(store, acknowledged, 1, 1, 4)
        broken, driver = faults.break_store(store, at=at, how=how, every=True)
        claimed = None
        with contextlib.suppress(faults.Died, CheckpointError):
            claimed = claim_next(AttemptLog(broken, TRAIN_ONLY), {}, lease_s=0, sleep=lambda seconds: None)
        done = driver.changes < at
        log = AttemptLog(store, TRAIN_ONLY)
        assert claimed in (None, 2)
        assert claimed is None or log.newest() == 2
        counted = check(store, acknowledged)
        with contextlib.suppress(RunActive):
            claim_next(log, {}, lease_s=0, sleep=lambda seconds: None)
        assert log.newest() in (2, 3), "the next one takes the next number, whatever became of this one"
        assert check(store, acknowledged) == counted
    assert at >= 5


@pytest.mark.parametrize("how", ["fails", "refused once", "answer lost", "answer lost always"])
def test_a_commit_of_two_ranks_broken_at_any_operation_is_whole_on_both_or_on_none(
    make_store: MakeStore, faults: SimpleNamespace, how: str
) -> None:
    at, done, refused = 0, False, 0
    ref = CommitRef("train", 10, 1)
    with ThreadPoolExecutor(2) as pool:
        while not done:
            at += 1
            store = make_store("memory")
            broken, driver = faults.break_store(store, at=at, how=how, every=True)

            def act(seat: ThreadExchange, broken: Store = broken) -> Manifest | CheckpointError:
                writer = CommitWriter(broken, TRAIN_ONLY, ref)
                try:
                    return commit_together(
                        writer, seat, lambda into: void(into.put(f"of-{seat.rank}", b"%d" % seat.rank)), meta={}
                    )
                except CheckpointError as exc:
                    return exc

            one, two = pool.map(act, ThreadExchange.seats(2))
            done = driver.changes < at
            assert isinstance(one, Manifest) == isinstance(two, Manifest), "all ranks learn the same"
            if isinstance(one, Manifest):
                assert list_commits(store, TRAIN_ONLY) == [ref]
                assert [CommitReader.open(store, TRAIN_ONLY, ref).read(f"of-{rank}") for rank in (0, 1)] == [b"0", b"1"]
            else:
                refused += 1
                for listed in list_commits(store, TRAIN_ONLY):  # its answer was lost: it is there, and it is whole
                    CommitReader.open(store, TRAIN_ONLY, listed).verify()
            assert not done or isinstance(one, Manifest)
    assert at >= 4
    assert refused or how in ("refused once", "answer lost")


def void(_: Any) -> None:
    """`put_objects` gives nothing back."""
