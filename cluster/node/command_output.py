"""What a training command prints, on its way into the run's log: lines whole, in pieces that memory holds, in bounds.

Every line becomes an event in the run's store, which `logs` and `status` read. A program that prints without end would
fill the store with it and wait for its own pipe: 315 MB of lines took 70 s and 151 MB of events (2026-11, 2 cores). So
a burst passes, and after it so many lines a second; of the others all are counted, and the newest are told at the end,
where a traceback is.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

logger = logging.getLogger(__name__)

LINES_AT_ONCE: Final = 2000
LINES_PER_S: Final = 5.0
_LAST_LINES: Final = 100
_LONGEST_LINE: Final = 4000
_PIECE_BYTES: Final = 64 * 1024
_SAY_EVERY_S: Final = 60.0
_TORCHRUN_ENDS: Final = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError"
_RANK: Final = re.compile(r"^\[rank\d+\]: ?")


class Readable(Protocol):
    """What is wanted of a pipe."""

    def readline(self, limit: int, /) -> bytes:
        """One line, or so many bytes of it; nothing at its end."""
        ...


def read_lines(pipe: Readable) -> Iterator[str]:
    """The lines of a pipe, cut where they are long. What has no line ends, such as a progress bar that redraws its line
    with \\r, comes in pieces, and of each piece only the last state.
    """
    while raw := pipe.readline(_PIECE_BYTES):
        line = raw.decode(errors="replace").rstrip().rpartition("\r")[2][:_LONGEST_LINE]
        if line:
            yield line


def last_words(lines: Sequence[str]) -> str:
    """The line that says most of how a program ended: its last that is more than a rule of dashes; empty without one.

    torchrun ends with a report of its own, which says which rank failed and not why: then what that rank raised.
    """
    ends = [line for line in lines if any(char.isalnum() for char in line)]
    report = next((place for place, line in enumerate(ends) if _TORCHRUN_ENDS in line), None)
    if report is None:
        return ends[-1].strip() if ends else ""
    raised, in_traceback = "", False
    for line in (_RANK.sub("", one) for one in ends[:report]):
        if line.startswith("Traceback (most recent call last)"):
            in_traceback = True
        elif in_traceback and not line.startswith(" "):
            raised, in_traceback = line, False
    return raised or ends[report].strip()


class CommandOutput:
    """Takes lines from one or several listeners and logs them, in bounds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._allowed, self._at = float(LINES_AT_ONCE), clock()
        self._left_out, self._said_at = 0, clock()
        self._newest: deque[tuple[str, bool]] = deque(maxlen=_LAST_LINES)  # and whether it was logged

    def take(self, line: str) -> None:
        """Log a line, or count it among those that are left out."""
        with self._lock:
            now = self._clock()
            self._allowed = min(float(LINES_AT_ONCE), self._allowed + (now - self._at) * LINES_PER_S)
            self._at = now
            if is_logged := self._allowed >= 1.0:
                self._allowed -= 1.0
                if now - self._said_at >= _SAY_EVERY_S:
                    self._say(now)
                logger.info("%s", line)
            else:
                self._left_out += 1
            self._newest.append((line, is_logged))

    def close(self) -> None:
        """Say how many were left out, and its newest lines whole. Idempotent."""
        with self._lock:
            self._say(self._clock())
            newest = list(self._newest)
            first = next((place for place, (_, is_logged) in enumerate(newest) if not is_logged), len(newest))
            for line, _ in newest[first:]:
                logger.info("%s", line)
            self._newest = deque(((line, True) for line, _ in newest), maxlen=_LAST_LINES)

    def last_words(self) -> str:
        """What it said last, as `last_words` reads it."""
        with self._lock:
            return last_words([line for line, _ in self._newest])

    def _say(self, now: float) -> None:
        if self._left_out:
            logger.warning(
                "%d lines that the command printed are not in this log, which takes %.0f lines a second. Let it print "
                "less, or into a file of its own", self._left_out, LINES_PER_S,
            )  # fmt: skip
        self._left_out, self._said_at = 0, now
