"""Exceptions on a node -> stop reasons: the one place that knows which error means what for the run."""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_jobs.errors import AlpacaError, BudgetExceeded, TeacherError, TrainingError
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
        case MemoryError():
            return Failure(StopReason.OUT_OF_MEMORY, words)
        case _ if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
            return Failure(StopReason.OUT_OF_MEMORY, words)
        case _:
            return Failure(StopReason.CRASHED, f"{type(error).__name__}: {words}", unexpected=True)
