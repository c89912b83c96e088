"""Every error a node can end with means one thing for the run."""

from __future__ import annotations

import pytest

from alpaca_jobs.errors import (
    BudgetExceeded,
    DataError,
    ModelError,
    TeacherAuth,
    TeacherError,
    TeacherRateLimited,
    TrainingError,
)
from checkpoints.errors import Damaged, StoreFull, StorePermission, StoreUnreachable, Superseded
from cluster.errors import RayFailure
from cluster.node.failures import describe_failure
from cluster.recovery import StopReason


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


def had_worked(error: TeacherError) -> TeacherError:
    error.had_given_rows = True
    return error


@pytest.mark.parametrize(
    ("error", "reason", "retryable", "exit_code"),
    [
        (Superseded(1, 2), StopReason.SUPERSEDED, True, None),
        (StoreUnreachable("no answer"), StopReason.STORE_FAILURE, True, 3),
        (StorePermission("not allowed"), StopReason.STORE_FAILURE, False, 3),
        (StoreFull("no space"), StopReason.STORE_FAILURE, False, 3),
        (Damaged("a/b", "a flipped bit"), StopReason.STORE_FAILURE, False, 3),
        (BudgetExceeded("used up"), StopReason.BUDGET, False, 4),
        (DataError("no rows"), StopReason.USER_ERROR, False, 2),
        (ModelError("no such model"), StopReason.USER_ERROR, False, 2),
        (TeacherRateLimited("429"), StopReason.USER_ERROR, False, 3),
        (had_worked(TeacherRateLimited("429")), StopReason.CRASHED, True, 3),
        (had_worked(TeacherAuth("the key was taken back")), StopReason.USER_ERROR, False, 3),
        (TrainingError("nan"), StopReason.CRASHED, True, 1),
        (RayFailure("died"), StopReason.CRASHED, True, None),
        (MemoryError(), StopReason.OUT_OF_MEMORY, True, None),
        (OutOfMemoryError("CUDA"), StopReason.OUT_OF_MEMORY, True, None),
        (ZeroDivisionError("x"), StopReason.CRASHED, True, None),
    ],
)
def test_an_error_becomes_its_stop_reason(
    error: Exception, reason: StopReason, retryable: bool, exit_code: int | None
) -> None:
    failure = describe_failure(error)
    assert (failure.reason, failure.retryable, failure.exit_code) == (reason, retryable, exit_code)
    assert failure.words
