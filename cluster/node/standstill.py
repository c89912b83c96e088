"""Whether training still goes on: when its last step was made, and how long the usual ones take.

A rank that hangs in a collective, a GPU that answers no more or a file system that is gone leaves everything else of a
node alive: it renews its lease, and is paid for. What such a node lacks is steps.

    ended after   limits.max_stall_min, or PAUSES x the longest pause between two signs that this attempt has seen
    the same, but PATIENCE x limits.max_stall_min      before there was a second step, and while state is saved or
                                                       held-out rows are measured

Loading a model, storing the first checkpoint and the first evaluation take as long as they take, so they get more time.
A command of the user's own may tell no steps at all: it is not judged before it has told two.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from cluster.duration import duration_words

TIMES: Final = 10
"""A pause this many times the usual step is worth a word."""
PAUSES: Final = 3
"""A silence this many times the longest pause is none of the job's own: evaluations and saves are in that one."""
PATIENCE: Final = 4
WARN_LEAST_S: Final = 60.0
"""Where steps take seconds, a pause below this is no news (a slow save, a busy network)."""
WARN_FIRST_S: Final = 900.0
"""The same before the second step: large models are loaded for minutes."""
_KEPT: Final = 256  # steps that the usual one is taken from
_SIGNS: Final = frozenset({"loaded", "step", "save", "evaluating", "eval"})


@dataclass(frozen=True)
class Standstill:
    """Training as it stands between two signs of life.

    Attributes:
        silent_s: since the last sign: a step, a save or an evaluation that ended, the state loaded, or the start.
        usual_s: median time from one step to the next; None before the second.
        longest_s: the longest pause between two signs so far.
        step: the last one told; None before the first.
        is_judged: whether silence means anything yet.
        is_evaluating: whether held-out rows are being measured.
    """

    silent_s: float
    usual_s: float | None
    longest_s: float
    step: int | None
    is_judged: bool
    is_evaluating: bool = False

    @property
    def warn_after_s(self) -> float:
        """Silence that is worth a word."""
        if self.usual_s is None:
            return WARN_FIRST_S
        return max(WARN_LEAST_S, TIMES * self.usual_s, 2 * self.longest_s)

    def end_after_s(self, max_stall_s: float, *, is_saving: bool) -> float:
        """Silence that ends the attempt."""
        has_time = self.usual_s is None or is_saving or self.is_evaluating
        return max(max_stall_s * (PATIENCE if has_time else 1), PAUSES * self.longest_s)

    @property
    def words(self) -> str:
        """What is seen: `no step for 12 min 00 s after step 400, where one usually takes 2.4 s`."""
        after = "" if self.step is None else f" after step {self.step}"
        usual = "" if self.usual_s is None else f", where one usually takes {duration_words(self.usual_s)}"
        return f"no step for {duration_words(self.silent_s)}{after}{usual}"


class TrainingProgress:
    """Hears what training tells; safe to ask from any thread.

    Args:
        clock: seconds that do not pass while the computer sleeps.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sign_at: float | None = None
        self._step_at: float | None = None
        self._pauses: deque[float] = deque(maxlen=_KEPT)
        self._longest_s = 0.0
        self._step: int | None = None
        self._tells_steps = True
        self._is_evaluating = False

    def begin(self, *, tells_steps: bool = True) -> None:
        """Training runs from now on; `tells_steps` is whether it is known to tell of every step."""
        with self._lock:
            self._sign_at, self._step_at, self._tells_steps = self._clock(), None, tells_steps
            self._is_evaluating = False

    def told(self, kind: str, fact: Mapping[str, Any]) -> None:
        """Take one fact of training; those that are no sign of life are passed over."""
        with self._lock:
            if kind not in _SIGNS or self._sign_at is None:
                return
            now = self._clock()
            if self._step_at is not None:  # what comes before the first step is loading
                self._longest_s = max(self._longest_s, now - self._sign_at)
            self._sign_at = now
            if kind != "save":  # one that goes on in the background may end at any moment
                self._is_evaluating = kind == "evaluating"
            if kind == "step":
                if self._step_at is not None:
                    self._pauses.append(now - self._step_at)
                self._step_at, self._step = now, fact.get("step", self._step)

    def end(self) -> None:
        """Training is over: whatever follows has no steps."""
        with self._lock:
            self._sign_at = None

    def look(self) -> Standstill | None:
        """How it stands; None where nothing trains."""
        with self._lock:
            if self._sign_at is None:
                return None
            usual_s = median(self._pauses) if self._pauses else None
            return Standstill(
                self._clock() - self._sign_at, usual_s, self._longest_s, self._step,
                is_judged=self._tells_steps or usual_s is not None,
                is_evaluating=self._is_evaluating,
            )  # fmt: skip
