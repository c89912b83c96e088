"""Checkpointer: asynchronous, verified, sharded saves and loads of a torch state dict, on any number of ranks.

    checkpointer = Checkpointer(store, layout, stage="train", attempt=2, fence=fence)
    checkpointer.save(400, {"model": ..., "optim": ...}, meta={"loss": [...]}, fingerprint="...")   # all ranks
    for result in checkpointer.poll(): ...                       # every step; raises what the background ran into
    manifest = checkpointer.load(ref, state)                     # all ranks, any world size

`save` stops training only for a copy to host memory. A thread stores the copy, meets the other ranks, and rank 0
commits. At most one save is under way. What fails on one rank fails on every rank, at the same call. A store that does
not answer is waited for, for minutes: training goes on meanwhile.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch.distributed as dist

from checkpoints.agreed import AgreedFailure
from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric
from checkpoints.errors import CheckpointError, Damaged, NoGoodCommit, NotCommitted, StateMismatch
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef, Layout
from checkpoints.manifest import Manifest
from checkpoints.retention import Retention, known_blocks
from checkpoints.store import Store
from checkpoints.torch_group import make_exchange
from checkpoints.torch_plan import SaveLayout, plan_global, plan_local
from checkpoints.torch_restore import load_together, verify_together
from checkpoints.torch_snapshot import Snapshot
from checkpoints.torch_state import STATE_OBJECT, FlatState, Partial, flatten_state, render_state
from checkpoints.writer import CommitWriter, commit_together

logger = logging.getLogger(__name__)

SAVE_THREADS = 4
"""Objects of one rank that are stored at a time."""
PATIENCE_S = 180.0
"""How long a save goes on asking a store that does not answer: more than a fail-over takes, less than ranks wait for
each other."""


@dataclass(frozen=True)
class SaveResult:
    """One finished save.

    `stall_s`: training stood still; `seconds`: from the call to the commit; `bytes`: the whole state, all ranks;
    `stored_bytes`: of these, what was put into the store (the rest is referenced); `committed` is False for a save that
    was skipped because the one before was under way.
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
        self._structure: tuple[Any, ...] | None = None
        self._save_layout: SaveLayout | None = None
        self._snapshot: Snapshot | None = None
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

    def save(self, position: int, state: Mapping[str, Any], *, meta: Mapping[str, Any], fingerprint: str) -> None:
        """Snapshot `state` and store it in the background. Collective.

        Args:
            position: higher than any position saved before: paths are never used twice.
            state: nested dicts and lists of tensors (DTensors as they are; plain tensors count as the same on all
                ranks) and plain JSON values, of which rank 0's are stored.
            meta: JSON that readers see without torch; rank 0's is written.
            fingerprint: stands for what changes the mathematics.

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
        flat, layout, snapshot, written = self._prepare(position, state, meta)
        self._last_position = self.in_flight = position
        self._tell(position)
        record, problem = b"", None
        try:
            snapshot.take(flat)
            if self._exchange.rank == 0:
                record = render_state(layout.metadata, layout.places, flat)
        except Exception as exc:  # noqa: BLE001 - the others begin to store by now: they learn of it as of any failure
            problem = exc
        stall_s = time.monotonic() - started
        job = _SaveJob(position, layout, snapshot, record, written, fingerprint, started, stall_s, problem)
        self._thread = threading.Thread(target=self._run, args=(job,), name=f"save-{position}", daemon=True)
        self._thread.start()

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
        manifest = load_together(self._exchange, self._store, self._layout, ref, state, partial=partial)
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
                    verify_together(self._exchange, self._store, self._layout, ref)
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

    def pin(self, refs: Collection[CommitRef]) -> None:
        """Keep these commits whatever `keep` says; replaces those pinned before."""
        if self._retention is not None:
            self._retention.pinned = tuple(refs)

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

    def _prepare(
        self, position: int, state: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> tuple[FlatState, SaveLayout, Snapshot, dict[str, Any]]:
        """Flatten the state; plan again if its structure changed on any rank. What is wrong on one is raised on all."""
        flat, written = FlatState({}, {}), dict[str, Any]()
        problem: Exception | None = self.over
        try:
            if position <= self._last_position:
                raise ValueError(
                    f"position {position} cannot be saved: {self._last_position} was saved (or loaded) before, and "
                    "paths are never used twice"
                )
            flat = flatten_state(state)
            written = _as_json(meta) if self._exchange.rank == 0 else {}
        except (StateMismatch, ValueError) as exc:
            problem = problem or exc
        structure = flat.structure()
        answers = self._exchange.gather((problem, structure != self._structure, position))
        for raised, _, _ in answers:
            if raised is not None:
                raise raised
        if len({at for _, _, at in answers}) > 1:
            raise ValueError(
                f"the ranks save different positions, {[at for _, _, at in answers]} by rank: one commit is of one "
                "position. Count steps alike on all ranks."
            )
        if any(changed for _, changed, _ in answers):
            local = plan_local(flat, is_coordinator=self._exchange.rank == 0)
            self._save_layout = plan_global(self._exchange.gather(local), self._exchange.rank)
            self._snapshot = None
            on_cuda = any(tensor.is_cuda for tensor in flat.tensors.values())
            self._snapshot = Snapshot(self._save_layout, pinned=on_cuda)
            self._structure = structure
        assert self._save_layout is not None
        assert self._snapshot is not None
        return flat, self._save_layout, self._snapshot, written

    def _run(self, job: _SaveJob) -> None:
        try:
            manifest = self._commit(job)
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

    def _commit(self, job: _SaveJob) -> Manifest:
        ref = CommitRef(self._stage, job.position, self._attempt)
        known = known_blocks(self._newest, self._layout) if self._newest else {}
        writer = CommitWriter(self._patient, self._layout, ref, fence=self._fence, known=known)

        def put_objects(writer: CommitWriter) -> None:
            if job.problem is not None:
                raise job.problem
            prepared = [
                writer.prepare(planned.name, job.snapshot.bytes_of(planned.name), cuts=planned.cuts)
                for planned in job.layout.objects
            ]
            if job.record:
                prepared.append(writer.prepare(STATE_OBJECT, job.record))
            with ThreadPoolExecutor(SAVE_THREADS, thread_name_prefix="store") as pool:
                for _ in pool.map(writer.store, prepared):
                    pass

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


@dataclass(frozen=True)
class _SaveJob:
    """What the background thread needs; nothing of it is shared with training."""

    position: int
    layout: SaveLayout
    snapshot: Snapshot
    record: bytes
    meta: Mapping[str, Any]
    fingerprint: str
    started: float
    stall_s: float
    problem: Exception | None = None


def _as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` as readers will see it, and out of reach of whoever changes it later.

    Raises:
        StateMismatch: it is no JSON.
    """
    try:
        written: dict[str, Any] = json.loads(json.dumps(dict(meta)))
    except (TypeError, ValueError) as exc:
        raise StateMismatch(
            f"meta is no JSON ({exc}): it holds numbers, strings, lists and dicts, for readers without torch. Write "
            "loss.item() for a tensor, float(loss) for a number of numpy's."
        ) from exc
    return written
