"""How long an attempt needs to leave with its state committed: what a notice of a limit or a cancel has to leave it.

    window = 1.5 x save  +  the save under way  +  a step and an evaluation  +  TOLD_S      while it trains, else 0

A save is begun only if 1.5 times its measured time is left (alpaca_jobs/training/saving.py), one that is under way ends
first, and a notice is heard between two steps. What counts is this attempt's own saves and steps; until there are any,
those of the attempt before; until there are any, the model's size.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from alpaca_jobs.known_models import parameters_by_name
from alpaca_jobs.spec import JobSpec
from checkpoints.errors import CheckpointError
from checkpoints.store import Store
from cluster.event_reading import read_events
from cluster.events import Event
from cluster.phase import Marks, Phase

MARGIN: Final = 1.5
"""alpaca_jobs.training.saving.NOTICE_MARGIN, which cannot be imported here without torch; a test compares them."""
TOLD_S: Final = 5.0  # from a notice to the workers, and from their last word to the attempt's end
CANCEL_LEAST_S: Final = 30.0
CANCEL_MOST_S: Final = 600.0
"""Whoever cancels waits no longer than this, however long a save takes."""
_BYTES_PER_PARAMETER: Final = 12  # float32 parameter and AdamW's two moments: 81 GB for a 7B
_BYTES_PER_S: Final = 500e6  # of one node to the store; the estimate assumes the same (cluster/price/assumptions.py)
NEWEST_BATCHES: Final = 60  # of events: about ten minutes of a long run, in which it saves at least once


class LeaveTime:
    """Follows what saves, steps and evaluations take; safe to ask from any thread.

    Args:
        expected_save_s: of a save, before one was measured.
        marks: what the node is doing; None where only the measurements are wanted.
    """

    def __init__(self, expected_save_s: float = 0.0, marks: Callable[[], Marks] | None = None) -> None:
        self._expected_save_s, self._marks = expected_save_s, marks
        self._lock = threading.Lock()
        self._measured = _Measured()
        self._before = _Measured()

    def told(self, kind: str, fact: Mapping[str, Any]) -> None:
        """Take an event of this attempt; those that time nothing are passed over."""
        with self._lock:
            self._measured.take(kind, fact)

    def learn(self, events: Iterable[Event]) -> None:
        """Take the events of an earlier attempt, which count until this one has measured itself."""
        before = _Measured()
        for event in events:
            if event.writer == "node":
                before.take(event.kind, event.fields)
        with self._lock:
            self._before = before

    def learn_from(self, store: Store) -> None:
        """Read the attempt before in a thread; a store that does not answer leaves things as they are."""

        def read() -> None:
            try:
                self.learn(read_events(store, newest_batches=NEWEST_BATCHES))
            except CheckpointError:
                return

        threading.Thread(target=read, name="leave-time", daemon=True).start()

    @property
    def save_s(self) -> float:
        """Longest of the last saves, or what is expected of one; seconds."""
        with self._lock:
            return max(self._measured.saves or self._before.saves or [self._expected_save_s])

    @property
    def window_s(self) -> float:
        """Seconds from a notice until everything is committed, as of now; 0 where nothing but a moment is needed."""
        marks = None if self._marks is None else self._marks()
        if marks is not None and marks.phase is not Phase.STEP:
            return 0.0
        save_s = self.save_s
        with self._lock:
            step_s = max(self._measured.steps or self._before.steps or [0.0])
            pause_s = max(self._measured.evaluations or self._before.evaluations or [0.0])
        under_way_s = save_s if marks is not None and marks.saving is not None else 0.0
        return MARGIN * save_s + under_way_s + step_s + pause_s + TOLD_S

    @property
    def cancel_s(self) -> float:
        """The window of a cancel: `window_s` within CANCEL_LEAST_S and CANCEL_MOST_S."""
        return min(max(self.window_s, CANCEL_LEAST_S), CANCEL_MOST_S)

    @property
    def longest_cancel_s(self) -> float:
        """The same as somebody elsewhere has to expect it, who does not see whether a save is under way."""
        return min(max(self.window_s + self.save_s, CANCEL_LEAST_S), CANCEL_MOST_S)


class _Measured:
    """The last few of each, seconds; as many saves as the trainer looks at."""

    def __init__(self) -> None:
        self.saves: deque[float] = deque(maxlen=4)
        self.steps: deque[float] = deque(maxlen=8)
        self.evaluations: deque[float] = deque(maxlen=2)

    def take(self, kind: str, fact: Mapping[str, Any]) -> None:
        seconds = fact.get("seconds")
        if not isinstance(seconds, int | float) or (kind == "save" and not fact.get("committed")):
            return
        kept = {"save": self.saves, "step": self.steps, "eval": self.evaluations}.get(kind)
        if kept is not None:
            kept.append(float(seconds))


def expected_save_s(job: JobSpec, num_parameters: int | None) -> float:
    """Seconds that a save of a job's training is expected to take; 0.0 where its size is not known, or it is small.

    Args:
        num_parameters: of the base model as its files told them at launch; None: by the model's name.
    """
    if job.train.method == "lora" or "train" not in job.stages:
        return 0.0
    size = num_parameters or parameters_by_name(job.train.model) or 0
    return size * _BYTES_PER_PARAMETER / _BYTES_PER_S / job.compute.num_nodes
