"""AttemptCheckpointer: one attempt's checkpointer; a RunCheckpointer takes the attempt, a GivenCheckpointer is told."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.distributed as dist

from checkpoints.agreed import on_rank_0
from checkpoints.barrier import Exchange
from checkpoints.keys import CommitRef
from checkpoints.manifest import Manifest
from checkpoints.torch_bridge import Checkpointer, Loaded, SaveResult
from checkpoints.torch_group import make_exchange
from checkpoints.torch_state import Partial

SAVE_FAILED = "save_failed"
"""Why an attempt ended whose last save came to nothing: its newest state is an older one."""


class AttemptCheckpointer(ABC):
    """One attempt's saves and loads. All ranks call its methods in the same order; a context manager too."""

    attempt: int
    _exchange: Exchange
    _checkpointer: Checkpointer

    def __init__(self, *, timeout_s: float) -> None:
        self.started = False
        """Whether `resume` has settled what this attempt continues."""
        self._ended = False
        self._exchange, group = make_exchange(None, timeout_s=timeout_s)
        # The ranks agree on leaving while the background may be meeting too: that takes a group of its own.
        self._front, front = make_exchange(None, timeout_s=timeout_s)
        self._group = group
        self._own_groups = [one for one in (group, front) if one is not None]

    def resume(self, state: Mapping[str, Any], *, whole: bool = False, partial: Partial = False) -> Loaded | None:
        """Load the newest good commit into `state`, in place, and record it as this attempt's base.

        Args:
            whole: choose by all of the commit, also where `state` asks for a part of it.
            partial: `state` is a part of what was saved on purpose; see `Checkpointer.load`.

        Returns:
            None, and `state` as it was, when there is no commit yet.

        Raises:
            NoGoodCommit: there are commits, all damaged.
            StateMismatch: `state` is not what was saved, or has no place for all of it.
        """
        loaded = self._checkpointer.load_newest(self._candidates(), state, whole=whole, partial=partial)
        on_rank_0(self._exchange, lambda: self._record_base(loaded.ref if loaded else None))
        self.started = True
        return loaded

    def load(self, ref: CommitRef, state: Mapping[str, Any], *, partial: Partial = True) -> Manifest:
        """Load one commit, perhaps the one that `resume` loaded a part of; see `Checkpointer.load`."""
        return self._checkpointer.load(ref, state, partial=partial)

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        meta: Mapping[str, Any] | None = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        """Store `state` as the one after `step` steps, in the background; see `Checkpointer.save`.

        Args:
            optimizers: what is theirs in `state` is copied beside the next forward and backward pass; their next step
                waits for it by itself.

        Raises:
            RuntimeError: `resume` was not called, so nobody knows which older commits this one continues.
        """
        if not self.started:
            raise RuntimeError("call resume() before the first save: it finds out what this run continues")
        self._checkpointer.save(step, state, meta=meta or {}, fingerprint="", optimizers=optimizers)

    def wait_for_copy(self) -> None:
        """Call this before changing by hand what was given to `save` as an optimizer's."""
        self._checkpointer.wait_for_copy()

    def poll(self) -> list[SaveResult]:
        """Finished saves, without waiting; raises what a save ran into, at the same call on every rank."""
        return self._told(self._checkpointer.poll())

    def wait(self) -> list[SaveResult]:
        """Finished saves, after the one under way has ended; raises what a save ran into."""
        return self._told(self._checkpointer.wait())

    def any_rank(self, flag: bool) -> bool:
        """Whether any rank brought True; collective."""
        return any(self._front.gather(flag))

    def close(self, stop_reason: str | None = None) -> None:
        """Wait for the save under way and end the attempt.

        Args:
            stop_reason: default: "done", or "crashed" where an exception is on its way out.

        Raises:
            CheckpointError: a save failed, and neither poll nor wait has said so; the attempt ends as "save_failed". It
                is only logged where another exception is on its way out.
        """
        is_unwinding = sys.exc_info()[0] is not None
        self._close(stop_reason or ("crashed" if is_unwinding else "done"), is_unwinding=is_unwinding)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._close("done" if kind is None else "crashed", is_unwinding=kind is not None)

    def _close(self, stop_reason: str, *, is_unwinding: bool) -> None:
        if self._ended:
            return
        self._ended = True
        problem = self._checkpointer.end()
        try:
            self._end(SAVE_FAILED if problem is not None and stop_reason == "done" else stop_reason)
        finally:
            self._give_back()
        if problem is not None and not is_unwinding:
            raise problem

    @abstractmethod
    def _candidates(self) -> Sequence[CommitRef]:
        """The commits that count, newest first, the same on all ranks; collective."""

    @abstractmethod
    def _record_base(self, ref: CommitRef | None) -> None:
        """Rank 0: what was loaded."""

    def _told(self, results: list[SaveResult]) -> list[SaveResult]:
        """Finished saves on their way to the caller."""
        return results

    def _end(self, stop_reason: str) -> None:  # noqa: B027 - whoever is given an attempt leaves its end to its run
        """Record the attempt's end."""

    def _give_back(self) -> None:
        while self._own_groups:
            dist.destroy_process_group(self._own_groups.pop())
