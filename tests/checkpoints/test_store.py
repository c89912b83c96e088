"""One contract, three stores: file://, memory://, S3 (moto)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints.errors import AlreadyExists, ObjectMissing, PutOnceUnsupported, StoreError, StoreUnreachable
from checkpoints.store import Retries, Store


class TestStoreContract:
    def test_what_was_put_is_read_back(self, store: Store) -> None:
        store.put("a/b.bin", b"0123456789")
        assert store.get("a/b.bin") == b"0123456789"
        assert store.size("a/b.bin") == 10
        assert store.exists("a/b.bin")

    def test_a_put_replaces_what_was_there(self, store: Store) -> None:
        store.put("a", b"long long long")
        store.put("a", b"short")
        assert store.get("a") == b"short"

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        store.put("empty", b"")
        assert store.get("empty") == b""
        assert store.size("empty") == 0
        assert store.list() == ["empty"]

    def test_ranges_are_read_and_end_where_the_object_ends(self, store: Store) -> None:
        store.put("a", b"0123456789")
        assert store.get_range("a", 2, 3) == b"234"
        assert store.get_range("a", 8, 5) == b"89"
        assert store.get_range("a", 10, 5) == b""
        assert store.get_range("a", 4, 0) == b""
        buffer = bytearray(b"......")
        for start, length, count in ((2, 3, 3), (8, 6, 2), (10, 5, 0), (0, 0, 0)):
            assert store.get_into("a", start, memoryview(buffer)[:length]) == count
        assert buffer == b"894..."

    def test_a_missing_object_is_named(self, store: Store) -> None:
        assert store.size("nothing/here") is None
        assert not store.exists("nothing/here")
        into = memoryview(bytearray(4))
        for read in (store.get, lambda key: store.get_range(key, 0, 4), lambda key: store.get_into(key, 0, into)):
            with pytest.raises(ObjectMissing, match="nothing/here does not exist") as caught:
                read("nothing/here")
            assert caught.value.key == "nothing/here"

    def test_listings_are_recursive_sorted_by_key_and_never_stale(self, store: Store) -> None:
        assert store.list() == []
        for key in ("b/2", "a", "b/1/x", "bb"):
            store.put(key, b"")
            assert key in store.list()
        assert store.list() == ["a", "b/1/x", "b/2", "bb"]
        assert store.list("b/") == ["b/1/x", "b/2"]
        assert store.list("b") == ["b/1/x", "b/2", "bb"]
        store.delete(["b/2"])
        assert store.list("b/") == ["b/1/x"]

    def test_deleting_twice_is_no_error(self, store: Store) -> None:
        store.put("a/b/c", b"1")
        store.put("a/b/d", b"1")
        store.delete(["a/b/c", "a/b/never-there"])
        store.delete(["a/b/c"])
        assert store.list() == ["a/b/d"]
        store.delete([])

    def test_a_child_sees_only_what_is_below_it(self, store: Store) -> None:
        child = store.child("run-1/").child("deep")
        child.put("x", b"1")
        store.put("y", b"2")
        assert child.list() == ["x"]
        assert store.list() == ["run-1/deep/x", "y"]
        assert child.uri == f"{store.uri}/run-1/deep"

    def test_large_objects_go_and_come_without_being_bytes(self, store: Store) -> None:
        data = bytearray(os.urandom(1 << 20)) * 40  # several parts on S3
        store.put("large", memoryview(data))
        assert store.size("large") == len(data)
        assert store.get("large") == data
        assert store.get_range("large", 33 << 20, 1 << 20) == data[33 << 20 : 34 << 20]
        buffer = bytearray(3 << 20)
        assert store.get_into("large", 5 << 20, memoryview(buffer)) == 3 << 20
        assert buffer == data[5 << 20 : 8 << 20]

    def test_put_once_adds_a_nonce_and_returns_what_is_stored(self, store: Store) -> None:
        stored = store.put_once("claim.json", {"who": "me"})
        assert stored["who"] == "me"
        assert len(stored["nonce"]) == 32
        assert json.loads(store.get("claim.json")) == stored == store.get_json("claim.json")

    def test_the_second_put_once_is_refused_and_shown_the_first(self, store: Store) -> None:
        first = store.put_once("claim.json", {"who": "me"})
        with pytest.raises(AlreadyExists, match=r"claim\.json exists already") as caught:
            store.put_once("claim.json", {"who": "you"})
        assert caught.value.existing == first
        assert store.get_json("claim.json") == first

    def test_put_once_does_not_replace_what_was_put_otherwise(self, store: Store) -> None:
        store.put("claim.json", b"not json")
        with pytest.raises(AlreadyExists) as caught:
            store.put_once("claim.json", {"who": "me"})
        assert caught.value.existing is None

    def test_the_probe_passes_and_leaves_nothing(self, store: Store) -> None:
        store.probe_put_once()
        assert store.list() == []

    def test_nothing_unfinished_is_left_by_normal_work(self, store: Store) -> None:
        store.put("a/b", b"1")
        store.put_once("a/c", {})
        assert store.abort_unfinished("") == 0

    def test_two_writers_of_one_key_have_one_winner(self, store: Store) -> None:
        _race(store, store, tries=200)

    def test_the_winner_is_the_same_when_every_answer_is_lost(self, store: Store, faults: SimpleNamespace) -> None:
        lossy, _ = faults.break_store(store, at=1, how="answer lost always")
        _race(store, lossy, tries=200)

    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/./b"])
    def test_a_key_that_leaves_the_store_is_refused(self, memory_store: Store, key: str) -> None:
        with pytest.raises(ValueError, match="is no key"):
            memory_store.put(key, b"")


def _race(one: Store, other: Store, *, tries: int) -> None:
    """Two writers race for each of `tries` keys; exactly one must believe that it won, and its body must be there."""
    stores = (one, other)
    gate = threading.Barrier(2, timeout=30)

    def contend(me: int) -> list[str | None]:
        won = []
        for number in range(tries):
            gate.wait()
            try:
                won.append(stores[me].put_once(f"race/{number}.json", {"by": me})["nonce"])
            except AlreadyExists:
                won.append(None)
        return won

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(contend, range(2)))
    for number, nonces in enumerate(zip(*results, strict=True)):
        winners = [nonce for nonce in nonces if nonce is not None]
        assert len(winners) == 1, f"try {number}: {len(winners)} winners"
        body = one.get_json(f"race/{number}.json")
        assert body is not None
        assert body["nonce"] == winners[0]


def test_two_hundred_races_between_processes_have_one_winner_each(file_store: Store) -> None:
    tries, children = 200, []
    file_store.put("ready", b"")
    for me in range(3):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:  # a child that leaves without running pytest's exit handlers
            os.close(read_end)
            won = bytes(_wins(file_store, f"race/{number}.json", me) for number in range(tries))
            os.write(write_end, won)
            os._exit(0)
        os.close(write_end)
        children.append((pid, read_end))
    results = []
    for pid, read_end in children:
        with os.fdopen(read_end, "rb") as pipe:
            results.append(pipe.read())
        assert os.waitpid(pid, 0)[1] == 0
    assert [len(result) for result in results] == [tries] * 3
    assert all(sum(won) == 1 for won in zip(*results, strict=True))


def _wins(store: Store, key: str, me: int) -> bool:
    try:
        store.put_once(key, {"by": me})
    except AlreadyExists:
        return False
    return True


def test_a_store_is_usable_in_a_forked_child(store: Store) -> None:
    store.put("before", b"1")
    pid = os.fork()
    if pid == 0:
        ok = store.get("before") == b"1"
        store.put("from-child", b"2")
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    if store.uri.startswith("memory"):  # the child had a copy of its own
        assert store.size("from-child") is None
    else:
        assert store.get("from-child") == b"2"


class _Liar:
    """A store that answers every conditional put with success, as rclone's server and s3rver do."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create(self, key: str, data: bytes) -> bool:
        self._inner.write(key, data)
        return True


def test_a_store_that_accepts_a_second_put_is_refused_in_words(memory_store: Store) -> None:
    liar = Store(_Liar(memory_store._driver))
    with pytest.raises(PutOnceUnsupported, match="a second put of the same key was accepted"):
        liar.probe_put_once()
    assert memory_store.list() == []


class _CheckThenWrite(_Liar):
    """A store whose exclusive write is exists-then-write, as fsspec's generic one is."""

    def create(self, key: str, data: bytes) -> bool:
        if self._inner.size(key) is not None:
            return False
        threading.Event().wait(0.05)  # the window that every such store has, made wide
        self._inner.write(key, data)
        return True


def test_a_store_that_looks_first_and_writes_then_is_found_by_racing(memory_store: Store) -> None:
    with pytest.raises(PutOnceUnsupported, match="8 of 8 racing writers won"):
        Store(_CheckThenWrite(memory_store._driver)).probe_put_once()


def test_a_store_that_refuses_and_shows_nothing_is_an_error(memory_store: Store) -> None:
    class Blind(_Liar):
        def create(self, key: str, data: bytes) -> bool:
            return False

    blind = Store(Blind(memory_store._driver), retries=Retries(tries=3, sleep=lambda seconds: None))
    with pytest.raises(StoreError, match="refuses to create it and yet has nothing there"):
        blind.put_once("claim.json", {})


def test_a_lost_answer_is_settled_by_reading_back(store: Store, faults: SimpleNamespace) -> None:
    lossy, driver = faults.break_store(store, at=1, how="answer lost")
    stored = lossy.put_once("claim.json", {"who": "me"})
    assert store.get_json("claim.json") == stored
    assert driver.changes == 1, "what had arrived was not sent again"


def test_a_transient_failure_is_retried_and_waits_grow_with_jitter(
    memory_store: Store, faults: SimpleNamespace
) -> None:
    waits: list[float] = []
    driver = faults.FaultyDriver(memory_store._driver, at=1, how="refused once")
    retries = Retries(tries=3, first_wait_s=1.0, sleep=waits.append, uniform=lambda low, high: high)
    Store(driver, retries=retries).put("a", b"1")
    assert waits == [1.0]
    assert memory_store.get("a") == b"1"


def test_the_uri_says_where_things_are(tmp_path: Any, make_store: Callable[[str], Store]) -> None:
    assert Store.open(str(tmp_path)).uri == f"file://{tmp_path}"
    assert Store.open(f"file://{tmp_path}/a%20b").uri == f"file://{tmp_path}/a%20b"
    assert make_store("s3").uri.startswith("s3://bucket/tests-")
    assert make_store("memory").child("x").uri.endswith("/x")


def test_a_relative_file_uri_is_below_the_working_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open("file://./runs").uri == f"file://{tmp_path}/runs"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://host/x", "no store here speaks ftp://"),
        ("https://host/x", "Use file://, memory://, s3://, gs://, az://"),
        ("s3://AKIAABCDEFGHIJKLMNOP:secret@bucket/x", "may not hold credentials"),
        ("s3:///prefix", "the bucket is missing"),
    ],
)
def test_a_uri_that_cannot_be_is_refused_in_words(uri: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as caught:
        Store.open(uri)
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_answered_with_its_pip_line() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(StoreError, match="pip install 'alpaca-jobs"):
        Store.open("gs://bucket/x").list()


def test_patience_ends_by_the_clock_and_by_the_number_of_tries(memory_store: Store) -> None:
    now, waits = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    def away(*args: Any, **more: Any) -> None:
        raise ConnectionResetError("the connection broke")

    retries = Retries(sleep=sleep, uniform=lambda low, high: high, clock=lambda: now[0])
    store = Store(memory_store._driver, prefix=memory_store._prefix, retries=retries)
    store._driver.write = store._driver.create = away  # type: ignore[method-assign, assignment]
    for act in (lambda one: one.put("a", b""), lambda one: one.put_once("b", {})):
        waits.clear()
        with pytest.raises(StoreUnreachable):
            act(store)
        assert len(waits) == 4
        waits.clear()
        with pytest.raises(StoreUnreachable):
            act(store.patient(60))
        assert 60 <= sum(waits) < 80
        waits.clear()
        with pytest.raises(StoreUnreachable):
            act(store.patient(1e9))
        assert (len(waits), max(waits)) == (39, 15.0)
