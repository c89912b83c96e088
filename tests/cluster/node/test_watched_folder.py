"""A watched folder's saves: committed, told, and not undone by what deleting older ones runs into."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.node.watched_folder import SETTLED, WatchedFolder


class NeverDeletes:
    """A store whose identity may write and not delete."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def delete(self, keys: Sequence[str]) -> None:
        raise PermissionError(errno.EACCES, "no right to delete")


def _first_attempt(store: Store) -> Any:
    """What a watched folder is told of a run's first attempt."""
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    job = SimpleNamespace(checkpoints=SimpleNamespace(keep=2, keep_every=None))
    return SimpleNamespace(store=store, layout=LAYOUT, fence=Fence(log, 1), attempt=1, job=job)


def test_a_save_stands_and_is_told_although_older_ones_cannot_be_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(NeverDeletes(Store.open(f"file://{tmp_path}/store")._driver))
    ctx = _first_attempt(store)
    folder = tmp_path / "output"
    watched = WatchedFolder(ctx, folder)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 6):
            one = folder / f"checkpoint-{step}"
            one.mkdir(parents=True)
            (one / "state.bin").write_bytes(b"%d" % step)
            (one / SETTLED).touch()
            watched.finish()  # raises what a commit ran into
    assert [fact["position"] for fact in watched.saves] == [1, 2, 3, 4, 5]
    assert all(fact["committed"] for fact in watched.saves)
    assert [ref.position for ref in list_commits(store, LAYOUT)] == [5, 4, 3, 2, 1]
    assert "old checkpoints were not deleted; the next save tries again" in caplog.text


def test_what_a_killed_command_was_writing_is_no_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.open(f"file://{tmp_path}/store")
    ctx = _first_attempt(store)
    folder = tmp_path / "output"
    for step, age_s in ((5, 30), (10, 0)):
        one = folder / f"checkpoint-{step}"
        one.mkdir(parents=True)
        for name in ("rng_state_1.pth", "trainer_state.json"):
            (one / name).write_text("{}")
            os.utime(one / name, (time.time() - age_s, time.time() - age_s))
    watched = WatchedFolder(ctx, folder)
    with caplog.at_level(logging.WARNING):
        watched.finish(was_killed=True)
    assert [ref.position for ref in list_commits(store, LAYOUT)] == [5]
    assert "checkpoint-10 was being written when the command was killed" in caplog.text
    watched.finish()  # of one that ended by itself
    assert [ref.position for ref in list_commits(store, LAYOUT)] == [10, 5]
