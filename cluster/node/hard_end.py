"""Ending an attempt the hard way: it lost its right to write, or outstayed the window of a limit or a cancel.

The stages react to a notice between two steps. A step that hangs, an export that takes long or a store that does not
answer would carry an attempt over its line; so a thread of its own watches, records the end and ends the process.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Final

from checkpoints.errors import CheckpointError
from cluster.exits import NODE_EXITS, Notice
from cluster.node.attempt_context import Interruption
from cluster.node.failures import Failure
from cluster.recovery import ALL_DONE, StopReason

logger = logging.getLogger(__name__)

AFTER_WINDOW_S: Final = 10.0
"""From the end of a window to the hard end: an attempt that used all of its window still says its end itself."""
_ENFORCED: Final = frozenset({StopReason.BUDGET, StopReason.DEADLINE, StopReason.CANCELLED})
GONE_WITHIN_S: Final = 30.0  # from losing the right to write to the last of the node's processes being killed
_LAST_WORDS_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.5


class HardEnd:
    """Watches an attempt from `start` to `stop`.

    A preemption is not enforced: the machine itself ends that, and what is saved until then is saved.

    Args:
        record: puts the attempt's end into the store.
        gone: called last, with the reason: whatever else is to be said, and the machine.
        exit: ends this process with an exit code.
    """

    def __init__(
        self,
        interruption: Interruption,
        *,
        record: Callable[[Failure], object],
        gone: Callable[[StopReason], object],
        exit: Callable[[int], object] = os._exit,
        after_window_s: float = AFTER_WINDOW_S,
    ) -> None:
        self._interruption, self._record, self._gone, self._exit = interruption, record, gone, exit
        self._after_window_s = after_window_s
        self._stopping = threading.Event()

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._watch, name="hard-end", daemon=True).start()

    def stop(self) -> None:
        """The attempt is over by itself."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_EVERY_S):
            notice = self._interruption.notice
            if notice is None or notice.reason not in _ENFORCED:
                continue
            if self._interruption.seconds_left or self._stopping.wait(self._after_window_s):
                continue
            end_hard(self._failure(notice), record=self._record, gone=self._gone, exit=self._exit)
            return

    def _failure(self, notice: Notice) -> Failure:
        if self._interruption.is_done:
            words = f"{ALL_DONE}; tidying up afterwards was cut short ({notice.reason.value})"
            return Failure(StopReason.DONE, words)
        words = (
            f"{notice.reason.value}: it had {notice.window_s:.0f} s to leave and was still working "
            f"{self._after_window_s:.0f} s later, so it was ended; what was not committed by then is not saved"
        )
        return Failure(notice.reason, words)


def end_hard(
    failure: Failure,
    *,
    record: Callable[[Failure], object],
    gone: Callable[[StopReason], object],
    exit: Callable[[int], object],
) -> None:
    """Say an attempt's end as far as the store answers, and end this process; arguments as of HardEnd."""
    logger.error("%s", failure.words)
    _within(_LAST_WORDS_S, lambda: record(failure))
    _within(_LAST_WORDS_S, lambda: gone(failure.reason))
    exit(NODE_EXITS[failure.reason])


def lose(interruption: Interruption, error: CheckpointError, gone: Callable[[], object]) -> None:
    """The lease's thread found that this attempt may write no more: say so, and make sure that the node goes."""
    interruption.lose(error)

    def leave_anyway() -> None:
        logger.error("the node is still here %.0f s after it lost its lease; leaving the hard way", GONE_WITHIN_S)
        gone()
        os._exit(NODE_EXITS[StopReason.SUPERSEDED])

    timer = threading.Timer(GONE_WITHIN_S, leave_anyway)
    timer.daemon = True
    timer.start()


def _within(seconds: float, act: Callable[[], object]) -> None:
    """Do something that may hang or fail, and go on after so many seconds."""

    def attempt() -> None:
        try:
            act()
        except Exception:  # the process ends whatever its last words come to
            logger.exception("a last word could not be said")

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
