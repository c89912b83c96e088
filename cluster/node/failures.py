"""Exceptions on a node -> stop reasons: the one place that knows which error means what for the run."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from alpaca_jobs.errors import AlpacaError, BudgetExceeded, Diverged, TeacherError, TrainingError
from checkpoints.errors import (
    CheckpointError,
    Damaged,
    LeaseLost,
    NoGoodCommit,
    PutOnceUnsupported,
    StoreFull,
    StorePermission,
    Superseded,
)
from cluster.errors import AwaitingReview, ClusterError, RayFailure
from cluster.recovery import StopReason


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended.

    Attributes:
        words: for the user.
        retryable: whether another attempt can help.
        exit_code: what the run's command should exit with if this ends the run; None where the reason says it all.
        unexpected: whether the traceback is worth keeping.
    """

    reason: StopReason
    words: str
    retryable: bool = True
    exit_code: int | None = None
    unexpected: bool = False


_LASTING_STORE_ERRORS = (Damaged, NoGoodCommit, PutOnceUnsupported, StoreFull, StorePermission)


_MEMORY_WORDS: Final = ("out of memory", "allocate memory", "not enough memory", "_ALLOC_FAILED")
"""Of torch's RuntimeErrors: a CPU's allocator, CUDA outside of torch's own allocator, cuBLAS, cuDNN and NCCL."""
_PEER_WORDS: Final = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "peer")


def describe_failure(error: BaseException) -> Failure:
    """Say what an error means for the run; an unknown one is a crash."""
    words = str(error) or type(error).__name__
    match error:
        case Superseded() | LeaseLost():
            return Failure(StopReason.SUPERSEDED, words)
        case CheckpointError():
            lasting = isinstance(error, _LASTING_STORE_ERRORS)
            return Failure(StopReason.STORE_FAILURE, words, retryable=not lasting, exit_code=3)
        case BudgetExceeded():
            return Failure(StopReason.BUDGET, words, retryable=False, exit_code=4)
        case Diverged():
            return Failure(StopReason.DIVERGED, words, exit_code=1)
        case TrainingError():
            return Failure(StopReason.CRASHED, words, exit_code=1)
        case TeacherError() if error.retryable and error.had_given_rows:
            return Failure(
                StopReason.CRASHED, words, exit_code=3
            )  # it worked, so that a later attempt may find it again
        case TeacherError():
            # It was waited for with bounds already; another machine would ask the same teacher.
            return Failure(StopReason.USER_ERROR, words, retryable=False, exit_code=3)
        case AlpacaError():
            return Failure(StopReason.USER_ERROR, words, retryable=False, exit_code=error.exit_code)
        case RayFailure():
            return Failure(StopReason.CRASHED, words, unexpected=True)
        case AwaitingReview():
            return Failure(StopReason.REVIEW, words, retryable=False)
        case ClusterError():
            return Failure(StopReason.NODE_FAILURE, words, retryable=error.retryable, exit_code=error.exit_code)
        case _ if _is_memory(error):
            return Failure(StopReason.OUT_OF_MEMORY, words)
        case _:
            return Failure(StopReason.CRASHED, f"{type(error).__name__}: {words}", unexpected=True)


def most_telling(errors: Sequence[BaseException]) -> BaseException:
    """Of what several ranks ran into together, the cause: a rank that fails makes the others fail, by words of a
    connection, and theirs may come first. The first of equals.
    """
    return min(errors, key=_distance)


def is_cause(error: BaseException) -> bool:
    """Whether nothing more telling can come from another rank."""
    return _distance(error) <= 2


def _distance(error: BaseException) -> int:
    """How far from the cause it is: a process that is gone makes saves fail, and everything else by words of a peer."""
    match error:
        case _ if _is_memory(error):
            return 0
        case RayFailure():
            return 1
        case AlpacaError():
            return 2
        case CheckpointError():
            return 3
        case _:
            return 5 if any(word in str(error).lower() for word in _PEER_WORDS) else 4


def _is_memory(error: BaseException) -> bool:
    """torch's own class is told by its name, without importing torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)
