"""Giving up a machine on which training stands still although everything else of it lives (standstill.py says when).

First in words: an event that `status` shows. Then by ending the attempt as a failure of its node, so that the next one
starts in another region: the stages are told, and what does not leave by itself is ended the hard way. A process that
hangs in a driver or in a file system that is gone may hear nothing and answer nobody, its own node's driver included.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final

from cluster.errors import NodeLost
from cluster.node.attempt_context import Interruption
from cluster.node.failures import Failure
from cluster.node.hard_end import end_hard
from cluster.node.standstill import Standstill, TrainingProgress
from cluster.recovery import StopReason

LEAVE_WITHIN_S: Final = 30.0
"""From the stages being told to the hard end."""
_LOOK_EVERY_S: Final = 1.0


class StallWatch:
    """Watches an attempt from `start` to `stop`.

    Args:
        max_stall_min: of the job's limits; None: nothing is ended, only said.
        is_saving: whether a save is under way.
        tell: takes an event's kind and fields.
        record, gone, exit: as of HardEnd.
    """

    def __init__(
        self,
        progress: TrainingProgress,
        interruption: Interruption,
        *,
        max_stall_min: float | None,
        is_saving: Callable[[], bool],
        tell: Callable[..., object],
        record: Callable[[Failure], object],
        gone: Callable[[StopReason], object],
        exit: Callable[[int], object] = os._exit,
        leave_within_s: float = LEAVE_WITHIN_S,
    ) -> None:
        self._progress, self._interruption = progress, interruption
        self._max_stall_s = None if max_stall_min is None else 60.0 * max_stall_min
        self._is_saving, self._tell = is_saving, tell
        self._record, self._gone, self._exit = record, gone, exit
        self._leave_within_s = leave_within_s
        self._next_word_s = 0.0  # of silence; 0 while nothing was said of this one
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="stall-watch", daemon=True).start()

    def stop(self) -> None:
        """The attempt is over by itself."""
        self._stopping.set()

    def look(self) -> str | None:
        """Say what is to be said now; returns why the attempt has to end, if it has to."""
        still = self._progress.look()
        if still is None or not still.is_judged:
            return None
        end_after_s = None
        if self._max_stall_s is not None:
            end_after_s = still.end_after_s(self._max_stall_s, is_saving=self._is_saving())
            if still.silent_s >= end_after_s:
                return (
                    f"Training stands still on this machine: {still.words}. It was given up after "
                    f"{end_after_s / 60:.3g} min (limits.max_stall_min is {self._max_stall_s / 60:.3g})."
                )
        self._warn(still, end_after_s)
        return None

    def _warn(self, still: Standstill, end_after_s: float | None) -> None:
        if still.silent_s < still.warn_after_s:
            self._next_word_s = 0.0
            return
        if still.silent_s < self._next_word_s:
            return
        self._next_word_s = 2 * still.silent_s
        follows = (
            "Nothing ends that: limits.max_stall_min is null. To end it: alpaca-jobs cancel"
            if end_after_s is None
            else f"After {end_after_s / 60:.3g} min the attempt is ended, and the next one starts elsewhere "
            "(limits.max_stall_min)"
        )
        words = f"Training may hang: {still.words}. {follows}."
        self._tell("stall", seconds=round(still.silent_s, 1), usual_s=still.usual_s, step=still.step, words=words)

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            if (words := self.look()) is None:
                continue
            self._interruption.lose(NodeLost(words))
            if not self._stopping.wait(self._leave_within_s):
                failure = Failure(StopReason.NODE_FAILURE, words)
                end_hard(failure, record=self._record, gone=self._gone, exit=self._exit)
            return
