"""Checkpointer: asynchronous, verified, sharded saves and loads of a torch state dict, on any number of ranks.

    checkpointer = Checkpointer(store, layout, stage="train", attempt=2, fence=fence)
    checkpointer.save(400, {"model": ..., "optim": ...}, meta={"loss": [...]}, fingerprint="...")   # all ranks
    for result in checkpointer.poll(): ...                       # every step; raises what the background ran into
    manifest = checkpointer.load(ref, state)                     # all ranks, any world size

`save` stops training only for a copy to host memory; of what belongs to the optimizers that it is given, not even for
that: a thread copies it beside the next forward and backward pass, and their next step waits until it has been copied
(torch_overlap.py). The thread stores the copy, meets the other ranks, and rank 0 commits. At most one save is under
way. What fails on one rank fails on every rank, at the same call. A store that does not answer is waited for, for
minutes: beside a save training goes on meanwhile.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from checkpoints.agreed import AgreedFailure
from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric
from checkpoints.errors import CheckpointError, Damaged, NoGoodCommit, NotCommitted
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef, Layout
from checkpoints.manifest import Manifest
from checkpoints.retention import Retention, known_blocks
from checkpoints.store import Store
from checkpoints.torch_group import make_exchange
from checkpoints.torch_job import SaveJob
from checkpoints.torch_overlap import LateCopy, StepGate, owned_by
from checkpoints.torch_prepare import Preparation
from checkpoints.torch_restore import load_together, verify_together
from checkpoints.torch_state import Partial, render_state
from checkpoints.writer import CommitWriter, commit_together

logger = logging.getLogger(__name__)

PATIENCE_S = 180.0
"""How long a save or a load goes on asking a store that does not answer: more than a fail-over takes, less than ranks
wait for each other. To wait beside a load costs less than the machine's next start does."""


@dataclass(frozen=True)
class SaveResult:
    """One finished save.

    `stall_s`: training stood still, in `save` and before the update that waited for the copy; `seconds`: from the call
    to the commit; `bytes`: the whole state, all ranks; `stored_bytes`: of these, what was put into the store (the rest
    is referenced); `committed` is False for a save that was skipped because the one before was under way.
    """

    position: int
    stall_s: float
    seconds: float
    bytes: int
    stored_bytes: int
    committed: bool


@dataclass(frozen=True)
class Loaded:
    """What was loaded, and in `fallbacks` why newer commits were not."""

    ref: CommitRef
    manifest: Manifest
    fallbacks: tuple[str, ...]


class Checkpointer:
    """Saves and loads one stage's state for one attempt. All ranks make it, and call its methods in the same order.

    Args:
        stage: a stage of `layout`.
        attempt: the number this run was given; part of every path.
        fence: asked by rank 0 before each commit and delete; None where nothing else can be running.
        process_group: a gloo group for this object alone; default: it makes one (collective).
        keep, keep_every: the newest `keep` commits stay (never fewer than two), and every position divisible by
            `keep_every`; None for `keep` deletes nothing.
        best_by: the best commit by this number of `meta["metrics"]` stays as well (best.py).
        when_busy: what `save` does while the save before is under way: "wait" for it, or "skip" this one.
        timeout_s: how long ranks wait for each other.
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        *,
        stage: str,
        attempt: int,
        fence: Fence | None,
        process_group: dist.ProcessGroup | None = None,
        keep: int | None = 2,
        keep_every: int | None = None,
        best_by: Metric | None = None,
        when_busy: Literal["wait", "skip"] = "wait",
        timeout_s: float = 600.0,
    ) -> None:
        layout.stage_index(stage)
        self._store, self._layout, self._stage, self._attempt = store, layout, stage, attempt
        self._patient = store.patient(min(PATIENCE_S, timeout_s / 3))
        self._fence = None if fence is None else Fence(AttemptLog(self._patient, layout), fence.number)
        self._exchange, own = make_exchange(process_group, timeout_s=timeout_s)
        # Whether to skip is agreed on while the background may be meeting too: that takes a second group.
        self._front, front = make_exchange(None, timeout_s=timeout_s) if when_busy == "skip" else (self._exchange, None)
        self._own_groups = [group for group in (own, front) if group is not None]
        self._when_busy = when_busy
        self._retention = (
            Retention(store, layout, stage=stage, fence=fence, keep=keep, keep_every=keep_every, best_by=best_by)
            if keep is not None and fence is not None and self._exchange.rank == 0
            else None
        )
        self._preparation = Preparation(self._exchange)
        self._gate = StepGate()
        self._last_position = -1
        self._newest: Manifest | None = None
        self._thread: threading.Thread | None = None
        self._failure = AgreedFailure(self._exchange)
        self._finished: list[SaveResult] = []
        self._lock = threading.Lock()
        self.in_flight: int | None = None
        """The position that is being saved."""
        self.on_saving: Callable[[int | None], None] | None = None
        """Called on rank 0 with the position when a save starts, and with None when it has ended."""
        self.over: CheckpointError | None = None
        """Why this attempt may save no more, set by whoever learns of it; the next save raises it on every rank."""

    def save(
        self,
        position: int,
        state: Mapping[str, Any],
        *,
        meta: Mapping[str, Any],
        fingerprint: str,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        """Snapshot `state` and store it in the background. Collective.

        Args:
            position: higher than any position saved before: paths are never used twice.
            state: nested dicts and lists of tensors (DTensors as they are; plain tensors count as the same on all
                ranks) and plain JSON values, of which rank 0's are stored.
            meta: JSON that readers see without torch; rank 0's is written.
            fingerprint: stands for what changes the mathematics.
            optimizers: what is theirs in `state`, parameters and moments, is copied while training goes on, and every
                optimizer's next step waits for that by itself. Until then nothing else may change it: what does (other
                weights loaded, an average swapped in) fails the save, or calls `wait_for_copy` first. A step that runs
                without torch's hooks, as a captured CUDA graph, would not wait: leave such an optimizer out.

        Raises:
            StateMismatch: the state or `meta` holds what cannot be saved, on whichever rank.
            ValueError: the position is not higher than the last, or the ranks brought different ones.
            CheckpointError: the save before this one failed.
        """
        started = time.monotonic()
        if self._skips():
            self._finished.append(SaveResult(position, time.monotonic() - started, 0.0, 0, 0, committed=False))
            logger.warning("save of %s %d skipped: %s is still under way", self._stage, position, self.in_flight)
            return
        self._join()
        self._failure.raise_if_any()
        ready = self._preparation.prepare(position, state, meta, after=self._last_position, over=self.over)
        self._last_position = self.in_flight = position
        self._tell(position)
        record, problem, late = b"", None, LateCopy()
        try:
            late = ready.snapshot.take(ready.flat, owned_by(optimizers))
            if self._exchange.rank == 0:
                record = render_state(ready.layout.metadata, ready.layout.places, ready.flat)
        except Exception as exc:  # noqa: BLE001 - the others begin to store by now: they learn of it as of any failure
            problem = exc
        blocked_s = time.monotonic() - started
        job = SaveJob(
            position, ready.layout, ready.snapshot, late, record, ready.meta, fingerprint, started, blocked_s, problem
        )
        self._thread = threading.Thread(target=self._run, args=(job,), name=f"save-{position}", daemon=True)
        self._thread.start()
        self._gate.hold(late)

    def wait_for_copy(self) -> None:
        """Return when nothing of the state given to `save` is still to be copied: from now on anything may change it.

        Optimizers' steps, `load`, `wait`, the next `save` and `close` do this by themselves.
        """
        self._gate.wait()

    def poll(self) -> list[SaveResult]:
        """The saves that have finished since the last call, without waiting. Every rank calls it equally often.

        Raises:
            CheckpointError: a save failed, on whichever rank; nothing was committed by it. Raised at the same call on
                every rank.
        """
        self._failure.raise_if_due()
        return self._drain()

    def wait(self) -> list[SaveResult]:
        """Like `poll`, after the save under way has ended."""
        self._join()
        self._failure.raise_if_any()
        return self._drain()

    def load(self, ref: CommitRef, state: Mapping[str, Any], *, partial: Partial = True) -> Manifest:
        """Overwrite `state` in place with what was committed as `ref`; digests are checked on the way. Collective.

        Args:
            state: as for `save`, on any world size.
            partial: True: `state` may ask for less than the commit has (the model without the optimizer). False: all of
                the commit has to have a place in it, on some rank; or all but what is below these first names.

        Raises:
            Damaged, NotCommitted, StateMismatch, StoreUnreachable: on every rank alike. Part of the state may be
                overwritten then: load another commit before going on.
        """
        self._join()
        manifest = load_together(self._exchange, self._patient, self._layout, ref, state, partial=partial)
        if ref.stage == self._stage:
            self._last_position = max(self._last_position, ref.position - 1)
        self._newest = manifest
        return manifest

    def load_newest(
        self,
        candidates: Sequence[CommitRef],
        state: Mapping[str, Any],
        *,
        whole: bool = False,
        partial: Partial = False,
    ) -> Loaded | None:
        """Load the first of `candidates` that is whole, saying which ones were not. Collective.

        Args:
            candidates: counting commits, newest first, the same on all ranks; if empty, None is returned.
            whole: read the rest too, each rank a share, before the commit is chosen: for a `state` that is a part of
                what will be loaded.
            partial: as for `load`; a whole state is wanted here unless it is given.

        Raises:
            NoGoodCommit: there were candidates and none was whole: starting over would throw all of them away.
            StateMismatch, StoreUnreachable: as for `load`.
        """
        fallbacks: list[str] = []
        for ref in candidates:
            try:
                if whole:
                    verify_together(self._exchange, self._patient, self._layout, ref)
                return Loaded(ref, self.load(ref, state, partial=partial), tuple(fallbacks))
            except (Damaged, NotCommitted) as exc:
                fallbacks.append(str(exc))
                logger.warning("%s cannot be loaded, the next older commit is tried: %s", ref, exc)
        if not candidates:
            return None
        raise NoGoodCommit(
            f"none of the {len(candidates)} commits in {self._store.uri} could be read, and nothing starts over "
            f"silently. The newest: {fallbacks[0]} If the store itself is fine, begin a new run (or copy a good state "
            "back)."
        )

    def close(self) -> None:
        """Wait for the save under way and give the process group back.

        Raises:
            CheckpointError: a save failed and nobody polled since. It is only logged where another exception is on its
                way out already.
        """
        problem = self.end()
        if problem is not None and sys.exc_info()[0] is None:
            raise problem

    def end(self) -> Exception | None:
        """`close`, for callers with more to end: returns the failure that nobody polled, after logging it."""
        self._join()
        self._gate.close()
        problem = self._failure.take()
        if problem is not None:
            logger.error("a save of %s failed and nobody asked: %s", self._stage, problem)
        while self._own_groups:
            dist.destroy_process_group(self._own_groups.pop())
        return problem

    def _skips(self) -> bool:
        """Whether this save is skipped; all ranks decide alike, because all of them take part or none does."""
        if self._when_busy == "wait":
            return False
        busy = self._thread is not None and self._thread.is_alive()
        return any(self._front.gather(busy))

    def _run(self, job: SaveJob) -> None:
        problem = job.copy()
        try:
            manifest = self._commit(job, problem)
        except Exception as exc:
            logger.exception("the save of %s %d failed", self._stage, job.position)
            self._failure.set(exc)
        else:
            self._newest = manifest
            seconds = time.monotonic() - job.started
            result = SaveResult(
                job.position, job.stall_s, seconds, manifest.size_bytes, manifest.stored_bytes, committed=True
            )
            with self._lock:
                self._finished.append(result)
            self._tidy(manifest)
        finally:
            self.in_flight = None
            self._tell(None)

    def _commit(self, job: SaveJob, problem: Exception | None) -> Manifest:
        ref = CommitRef(self._stage, job.position, self._attempt)
        known = known_blocks(self._newest, self._layout) if self._newest else {}
        writer = CommitWriter(self._patient, self._layout, ref, fence=self._fence, known=known)

        def put_objects(writer: CommitWriter) -> None:
            if problem is not None:
                raise problem
            job.store(writer)

        return commit_together(writer, self._exchange, put_objects, fingerprint=job.fingerprint, meta=job.meta)

    def _tidy(self, manifest: Manifest) -> None:
        if self._retention is None:
            return
        try:
            self._retention.after_commit(manifest)
        except CheckpointError as exc:
            # The commit stands; what could not be deleted now is found again at the next save.
            logger.warning("old commits of %s could not be deleted: %s", self._stage, exc)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _drain(self) -> list[SaveResult]:
        with self._lock:
            finished, self._finished = self._finished, []
        return finished

    def _tell(self, position: int | None) -> None:
        if self.on_saving is not None and self._exchange.rank == 0:
            self.on_saving(position)
