"""GivenCheckpointer: RunCheckpointer's methods for a program that a run started: the attempt is given, not taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from checkpoints.attempts import AttemptLog
from checkpoints.best import Metric
from checkpoints.errors import CheckpointError
from checkpoints.fence import Fence
from checkpoints.given import GivenAttempt, Progress
from checkpoints.keys import CommitRef
from checkpoints.manifest import Manifest
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer, Loaded, SaveResult
from checkpoints.torch_group import make_exchange


class GivenCheckpointer:
    """Saves and loads within an attempt that somebody else claimed and keeps alive. All ranks make it and call its
    methods in the same order. What it does is told to the run by `progress`.
    """

    def __init__(
        self,
        given: GivenAttempt,
        *,
        progress: Progress | None = None,
        best_by: Metric | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        self._given = given
        self.progress = progress or Progress()
        self.attempt = given.attempt
        self.started = False
        """Whether `resume` has settled what this attempt continues."""
        store = Store.open(given.store_uri).child(given.run_id)
        self._log = AttemptLog(store, given.layout)
        self._exchange, group = make_exchange(None, timeout_s=timeout_s)
        self._own_groups = [group]
        self._checkpointer = Checkpointer(
            store, given.layout, stage=given.stage, attempt=given.attempt, fence=Fence(self._log, given.attempt),
            process_group=group, keep=given.keep, keep_every=given.keep_every, best_by=best_by, timeout_s=timeout_s,
        )  # fmt: skip
        # The ranks agree on leaving while the background may be meeting too: that takes a group of its own.
        self._front, front = make_exchange(None, timeout_s=timeout_s)
        self._own_groups.append(front)
        self._checkpointer.on_saving = lambda position: self.progress.tell("saving", position=position)
        self._ended = False

    def resume(self, state: Mapping[str, Any], *, whole: bool = False) -> Loaded | None:
        """Load the newest commit that is whole into `state`, in place, and record it as this attempt's base.

        Raises:
            NoGoodCommit: there are commits, all damaged.
            StateMismatch: `state` is not what was saved.
        """
        loaded = self._checkpointer.load_newest(self._given.candidates, state, whole=whole)
        self._record_base(loaded.ref if loaded else None)
        self.started = True
        return loaded

    def load(self, ref: CommitRef, state: Mapping[str, Any]) -> Manifest:
        """Load more of the commit that `resume` loaded; see `Checkpointer.load`."""
        return self._checkpointer.load(ref, state)

    def save(self, step: int, state: Mapping[str, Any], *, meta: Mapping[str, Any] | None = None) -> None:
        """Store `state` as the one after `step` steps, in the background.

        Raises:
            RuntimeError: `resume` was not called, so nobody knows which older commits this one continues.
        """
        if not self.started:
            raise RuntimeError("call resume() before the first save: it finds out what this run continues")
        self._checkpointer.save(step, state, meta=meta or {}, fingerprint="")

    def poll(self) -> list[SaveResult]:
        """Finished saves, without waiting; raises what a save ran into."""
        return self._told(self._checkpointer.poll())

    def wait(self) -> list[SaveResult]:
        """Finished saves, after the one under way has ended; raises what a save ran into."""
        return self._told(self._checkpointer.wait())

    def any_rank(self, flag: bool) -> bool:
        """Whether any rank brought True; collective."""
        return any(self._front.gather(flag))

    def close(self, stop_reason: str = "done") -> None:
        """Wait for the save under way. The attempt's end is its run's to record, whatever the reason."""
        if self._ended:
            return
        self._ended = True
        self._checkpointer.close()
        for group in self._own_groups:
            if group is not None:
                dist.destroy_process_group(group)

    def _record_base(self, ref: CommitRef | None) -> None:
        problem: CheckpointError | None = None
        if self._exchange.rank == 0:
            try:
                if self._given.base_is_open:
                    self._log.put_base(self.attempt, ref)
                self.progress.tell("loaded", position=None if ref is None else ref.position)
            except CheckpointError as exc:
                problem = exc
        if (told := self._exchange.gather(problem)[0]) is not None:
            raise told

    def _told(self, results: list[SaveResult]) -> list[SaveResult]:
        if self._exchange.rank == 0:
            for result in results:
                self.progress.tell("save", **asdict(result))
        return results
