"""RunCheckpointer: checkpoints for a training loop of your own, without the rest of this project.

    checkpoints = RunCheckpointer("s3://bucket/my-run")       # all ranks; takes the next attempt number
    resumed = checkpoints.resume(state)                       # newest good commit into `state`, or None
    checkpoints.save(step, state, meta={"loss": loss})        # asynchronous
    checkpoints.close()

A run lives below one URL and is tried as often as it takes. Each start is an attempt: it keeps a lease while it lives,
and a start while another one is alive is refused. The attempt begins where the newest good commit is, and whatever an
older start that was thought dead still writes does not count.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch.distributed as dist

from checkpoints.attempts import AttemptLog, claim_next
from checkpoints.best import Metric
from checkpoints.errors import CheckpointError
from checkpoints.fence import Fence, LeaseKeeper
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.manifest import Manifest
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer, Loaded, SaveResult
from checkpoints.torch_group import make_exchange

logger = logging.getLogger(__name__)


class RunCheckpointer:
    """One attempt at one run. All ranks make it and call its methods in the same order; a context manager too.

    Args:
        store: where the run lives: a URI (file://, memory://, s3://, gs://, az://, or a path), or a Store.
        storage_options: for the store's library (endpoint_url, key, ...); default: the environment.
        keep, keep_every, best_by, when_busy: as for Checkpointer.
        lease_s: an attempt that has not shown for so long that it lives is taken for dead by the next.

    Raises:
        RunActive: another attempt at this run is alive.
        PutOnceUnsupported: the store cannot keep two attempts apart.
    """

    def __init__(
        self,
        store: str | Store,
        *,
        storage_options: Mapping[str, Any] | None = None,
        keep: int | None = 2,
        keep_every: int | None = None,
        best_by: Metric | None = None,
        when_busy: Literal["wait", "skip"] = "wait",
        lease_s: float = 20.0,
        timeout_s: float = 600.0,
    ) -> None:
        self._store = Store.open(store, storage_options=storage_options) if isinstance(store, str) else store
        self._log = AttemptLog(self._store, TRAIN_ONLY)
        self._exchange, group = make_exchange(None, timeout_s=timeout_s + lease_s)
        self._group = group
        self._ended = False
        self.started = False
        """Whether `resume` has settled what this attempt continues."""
        self.attempt = int(self._on_rank_0(lambda: self._claim(lease_s)))
        self._lease: LeaseKeeper | None = None
        if self._exchange.rank == 0:
            self._lease = LeaseKeeper(
                self._log, self.attempt, interval_s=lease_s / 10, lease_s=lease_s, on_lost=self._on_lost
            )
            self._lease.start()
        self._checkpointer = Checkpointer(
            self._store,
            TRAIN_ONLY,
            stage="train",
            attempt=self.attempt,
            fence=Fence(self._log, self.attempt),
            process_group=group,
            keep=keep,
            keep_every=keep_every,
            best_by=best_by,
            when_busy=when_busy,
            timeout_s=timeout_s,
        )

    def resume(self, state: Mapping[str, Any], *, whole: bool = False) -> Loaded | None:
        """Load the newest good commit into `state`, in place; None (and `state` as it was) when there is none yet.

        Args:
            whole: choose by all of the commit, also where `state` asks for a part of it.

        Raises:
            NoGoodCommit: there are commits, all damaged.
            StateMismatch: `state` is not what was saved.
        """
        candidates = self._on_rank_0(
            lambda: counting_commits(self._log.records(), list_commits(self._store, TRAIN_ONLY), TRAIN_ONLY)
        )
        loaded = self._checkpointer.load_newest(candidates, state, whole=whole)
        self._on_rank_0(lambda: self._log.put_base(self.attempt, loaded.ref if loaded else None))
        self.started = True
        return loaded

    def load(self, ref: CommitRef, state: Mapping[str, Any]) -> Manifest:
        """Load one commit, or more of the one that `resume` loaded, into `state`; see `Checkpointer.load`."""
        return self._checkpointer.load(ref, state)

    def save(self, step: int, state: Mapping[str, Any], *, meta: Mapping[str, Any] | None = None) -> None:
        """Store `state` as the one after `step` steps, in the background; see `Checkpointer.save`.

        Raises:
            RuntimeError: `resume` was not called, so nobody knows which older commits this one continues.
        """
        if not self.started:
            raise RuntimeError("call resume() before the first save: it finds out what this run continues")
        self._checkpointer.save(step, state, meta=meta or {}, fingerprint="")

    def poll(self) -> list[SaveResult]:
        """Finished saves, without waiting; raises what a save ran into."""
        return self._checkpointer.poll()

    def wait(self) -> list[SaveResult]:
        """Finished saves, after the one under way has ended; raises what a save ran into."""
        return self._checkpointer.wait()

    def close(self, stop_reason: str = "done") -> None:
        """Wait for the save under way, record the end of this attempt, stop the lease."""
        if self._ended:
            return
        self._ended = True
        self._checkpointer.close()
        if self._lease is not None:
            self._lease.stop()
            self._log.put_end(self.attempt, {"stop_reason": stop_reason})
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def __enter__(self) -> RunCheckpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close("done" if kind is None else "crashed")

    def _claim(self, lease_s: float) -> int:
        self._store.probe_put_once()
        body = {"host": socket.gethostname(), "pid": os.getpid(), "world_size": self._exchange.world_size}
        return claim_next(self._log, body, lease_s=lease_s, poll_s=lease_s / 20)

    def _on_rank_0(self, act: Callable[[], Any]) -> Any:
        """Run `act` on rank 0; all ranks return its value or raise its error."""
        outcome: tuple[Any, CheckpointError | None] = (None, None)
        if self._exchange.rank == 0:
            try:
                outcome = (act(), None)
            except CheckpointError as exc:
                outcome = (None, exc)
        value, problem = self._exchange.gather(outcome)[0]
        if problem is not None:
            raise problem
        return value

    def _on_lost(self, error: CheckpointError) -> None:
        # The fence keeps this attempt from committing; the next save says so on every rank.
        logger.error("%s", error)
