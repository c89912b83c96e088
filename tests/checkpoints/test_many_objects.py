"""Commits of thousands of objects: none of them is waited for, looked at or deleted one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from checkpoints.errors import StoreUnreachable
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.retention import known_blocks
from checkpoints.store import Retries, Store
from checkpoints.store_fsspec import ConditionalFsspecDriver
from checkpoints.torch_bridge import Checkpointer
from checkpoints.torch_job import SAVE_THREADS
from checkpoints.writer import CommitWriter


class _Changed:
    """A driver of which one verb is another one."""

    def __init__(self, inner: Any, **verbs: Callable[..., Any]) -> None:
        self._inner = inner
        vars(self).update(verbs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_store_that_is_away_is_waited_for_once_and_not_for_each_object(
    memory_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("checkpoints.torch_plan.OBJECT_BYTES", 1)  # each tensor makes an object
    tried: set[str] = set()
    waited_s = [0.0]

    def away(key: str, data: bytes | memoryview) -> None:
        tried.add(key)
        raise ConnectionResetError("nobody is there")

    def sleep(seconds: float) -> None:
        waited_s[0] += seconds

    retries = Retries(sleep=sleep, clock=lambda: waited_s[0])
    store = Store(_Changed(memory_store._driver, write=away), retries=retries)
    made = Checkpointer(store, TRAIN_ONLY, stage="train", attempt=1, fence=None)
    made.save(1, {str(number): torch.full((4,), number) for number in range(40)}, meta={}, fingerprint="")
    with pytest.raises(StoreUnreachable):
        made.wait()
    assert 1 <= len(tried) <= SAVE_THREADS, "an object each thread had begun, and none after the first had failed"
    made.close()


def test_objects_that_a_commit_refers_to_are_looked_at_at_the_same_time(memory_store: Store) -> None:
    first = CommitWriter(memory_store, TRAIN_ONLY, CommitRef("train", 10, 1))
    frozen = {name: bytes([number]) * 2**16 for number, name in enumerate("abc")}
    for name, data in frozen.items():
        first.put(name, data)
    known = known_blocks(first.publish(meta={}), TRAIN_ONLY)
    driver, together = memory_store._driver, threading.Barrier(len(frozen), timeout=60)

    def size(key: str) -> int | None:
        together.wait()
        return driver.size(key)

    store = Store(_Changed(driver, size=size), prefix=memory_store._prefix)
    second = CommitWriter(store, TRAIN_ONLY, CommitRef("train", 20, 1), known=known)
    for name, data in frozen.items():
        second.put(name, data)
    assert second.publish(meta={}).stored_bytes == 0


def test_where_each_deletion_is_a_request_several_are_made_at_a_time() -> None:
    together, gone = threading.Barrier(3, timeout=60), set()

    class Files:
        def rm_file(self, path: str) -> None:
            together.wait()
            if path == "bucket/runs/b":
                raise FileNotFoundError(path)
            gone.add(path)

    Store(ConditionalFsspecDriver(Files, "gs", "bucket/runs")).delete(["a", "b", "c"])
    assert gone == {"bucket/runs/a", "bucket/runs/c"}
