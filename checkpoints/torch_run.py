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
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from checkpoints.agreed import on_rank_0
from checkpoints.attempts import AttemptLog, claim_next
from checkpoints.best import Metric
from checkpoints.errors import CheckpointError, LeaseLost, RunActive, restated
from checkpoints.fence import Fence, LeaseKeeper
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_attempt import AttemptCheckpointer
from checkpoints.torch_bridge import Checkpointer

logger = logging.getLogger(__name__)


class RunCheckpointer(AttemptCheckpointer):
    """One attempt at one run. All ranks make it and call its methods in the same order; a context manager too.

    A store that does not answer for a while ends nothing: once it answers again the lease is renewed, and as long as
    nobody else has taken over, saves go on.

    Args:
        store: where the run lives: a URI (file://, memory://, s3://, gs://, az://, or a path), or a Store.
        storage_options: for the store's library (endpoint_url, key, ...); default: the environment.
        keep, keep_every, best_by, when_busy: as for Checkpointer.
        lease_s: an attempt that has not shown for so long that it lives is taken for dead by the next.

    Raises:
        RunActive: another attempt at this run is alive, perhaps one of this very process that was not closed.
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
        super().__init__(timeout_s=timeout_s + lease_s)
        self._store = Store.open(store, storage_options=storage_options) if isinstance(store, str) else store
        self._log = AttemptLog(self._store, TRAIN_ONLY)
        self._lease_s = lease_s
        self._lease: LeaseKeeper | None = None
        self._lease_lock = threading.Lock()
        try:
            self.attempt = on_rank_0(self._exchange, self._claim)
        except BaseException:
            self._give_back()
            raise
        self._checkpointer = Checkpointer(
            self._store,
            TRAIN_ONLY,
            stage="train",
            attempt=self.attempt,
            fence=Fence(self._log, self.attempt),
            process_group=self._group,
            keep=keep,
            keep_every=keep_every,
            best_by=best_by,
            when_busy=when_busy,
            timeout_s=timeout_s,
        )
        if self._exchange.rank == 0:
            self._begin_lease()

    def _candidates(self) -> Sequence[CommitRef]:
        return on_rank_0(
            self._exchange,
            lambda: counting_commits(self._log.records(), list_commits(self._store, TRAIN_ONLY), TRAIN_ONLY),
        )

    def _record_base(self, ref: CommitRef | None) -> None:
        self._log.put_base(self.attempt, ref)

    def _end(self, stop_reason: str) -> None:
        with self._lease_lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.stop()
        if self._exchange.rank == 0:
            self._log.put_end(self.attempt, {"stop_reason": stop_reason})

    def _claim(self) -> int:
        self._store.probe_put_once()
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        body = {**me, "world_size": self._exchange.world_size}
        try:
            return claim_next(self._log, body, lease_s=self._lease_s, poll_s=self._lease_s / 20)
        except RunActive as exc:
            claims = {record.number: record.claim or {} for record in self._log.records()}
            claim = claims.get(exc.newest, {})
            if any(claim.get(name) != value for name, value in me.items()):
                raise
            raise restated(
                exc,
                f"attempt {exc.newest} at {self._store.uri} was begun by this very process and not closed, so it is "
                "alive; perhaps training raised an exception (in a notebook, say). Call close() of its callback or "
                "checkpointer and begin again, or use it in a with statement, which closes it. Ending the process "
                "(restarting the kernel) does it too.",
            ) from exc

    def _begin_lease(self) -> None:
        with self._lease_lock:
            if self._ended:
                return
            self._lease = LeaseKeeper(
                self._log, self.attempt, interval_s=self._lease_s / 10, lease_s=self._lease_s, on_lost=self._on_lost
            )
            self._lease.start()

    def _on_lost(self, error: CheckpointError) -> None:
        """From one of the lease's threads, which ends with this."""
        if isinstance(error, LeaseLost):
            # Nobody has taken over as far as we know. If somebody does, the fence says so before anything is committed.
            logger.warning("%s It goes on trying: unless somebody takes over, saves are still committed.", error)
            self._begin_lease()
            return
        logger.error("%s The next save raises this.", error)
        self._checkpointer.over = error
