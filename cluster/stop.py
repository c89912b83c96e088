"""How an attempt ended: the reasons, one stop with its facts, and how it reads. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cluster.plan import Placement


class StopReason(StrEnum):
    """How an attempt ended; values are what end records, events and reports hold."""

    DONE = "done"
    PART_DONE = "part_done"  # its stages are done, and those that follow have machines of their own
    PREEMPTED = "preempted"  # the machine was taken, and said so
    LOST = "lost"  # it stopped answering, or was killed without a word
    CAPACITY = "capacity"  # it never started: no such machine there now
    NODE_FAILURE = "node_failure"  # the machine or Ray on it broke
    CRASHED = "crashed"  # the job's own processes died
    USER_ERROR = "user_error"  # the job said in words that it cannot be
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"  # a loss or gradient that is not finite
    BUDGET = "budget"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    STORE_FAILURE = "store_failure"
    REVIEW = "review"  # the rows are written, and the job wants a person to look at them (data.review)
    SUPERSEDED = "superseded"  # a newer attempt that is not ours exists


@dataclass(frozen=True)
class Stop:
    """One attempt's end, or one refused launch.

    Attributes:
        attempt: its number; a refused launch holds the number that stayed unused.
        at_s: when, on the clock that `decide` gets as `now`.
        position: newest committed work when it stopped, in any form that compares equal exactly when nothing was
            added (None: nothing yet). The crash breaker looks at nothing else.
        detail: what was found, for the words.
        retryable: False if the error itself said that trying again cannot help.
        exit_code: the exit code that the error itself names (2 for wrong input), if it does.
    """

    attempt: int
    reason: StopReason
    placement: Placement
    at_s: float
    position: tuple[str, int] | None = None
    detail: str = ""
    retryable: bool = True
    exit_code: int | None = None


def stop_sentence(stop: Stop, times: str = "") -> str:
    """What stopped and why, as a sentence; `times` says how often it has."""
    detail = f": {stop.detail.rstrip('.')}" if stop.detail else ""
    what = "cancelled" if stop.reason is StopReason.CANCELLED else _describe(stop)
    text = f"{what}{times}{detail}."
    return text[0].upper() + text[1:]


def position_words(stop: Stop) -> str:
    """Where a run stood when an attempt of it stopped."""
    return "the start" if stop.position is None else f"{stop.position[0]} {stop.position[1]}"


def _describe(stop: Stop) -> str:
    words = {
        StopReason.PREEMPTED: "preempted",
        StopReason.LOST: "lost",
        StopReason.NODE_FAILURE: "stopped by a failure of its node",
        StopReason.OUT_OF_MEMORY: "out of memory",
        StopReason.USER_ERROR: "stopped by the job's own error",
        StopReason.STORE_FAILURE: "stopped because the store failed",
        StopReason.BUDGET: "stopped by the budget",
        StopReason.DEADLINE: "stopped by the deadline",
    }.get(stop.reason, stop.reason.value)
    return f"attempt {stop.attempt} in {stop.placement.name}, {words}"
