"""Every error a node can end with means one thing for the run."""

from __future__ import annotations

import errno

import pytest

from alpaca_jobs.errors import (
    BudgetExceeded,
    DataError,
    Diverged,
    ModelError,
    TeacherAuth,
    TeacherError,
    TeacherRateLimited,
    TrainingError,
)
from checkpoints.errors import Damaged, SaveFailed, StoreFull, StorePermission, StoreUnreachable, Superseded
from cluster.errors import RayFailure
from cluster.node.failures import describe_failure, is_cause, most_telling
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
        (TrainingError("another model's state"), StopReason.CRASHED, True, 1),
        (Diverged("nan"), StopReason.DIVERGED, True, 1),
        (RayFailure("died"), StopReason.CRASHED, True, None),
        (MemoryError(), StopReason.OUT_OF_MEMORY, True, None),
        (OutOfMemoryError("CUDA"), StopReason.OUT_OF_MEMORY, True, None),
        (RuntimeError("CUDA error: out of memory"), StopReason.OUT_OF_MEMORY, True, None),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), StopReason.OUT_OF_MEMORY, True, None),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), StopReason.OUT_OF_MEMORY, True, None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), StopReason.OUT_OF_MEMORY, True, None),
        (SaveFailed({0: "RuntimeError: out of memory"}, "step 5"), StopReason.STORE_FAILURE, True, 3),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), StopReason.CRASHED, True, None),
        (ZeroDivisionError("x"), StopReason.CRASHED, True, None),
    ],
)
def test_an_error_becomes_its_stop_reason(
    error: Exception, reason: StopReason, retryable: bool, exit_code: int | None
) -> None:
    failure = describe_failure(error)
    assert (failure.reason, failure.retryable, failure.exit_code) == (reason, retryable, exit_code)
    assert failure.words


PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:43653")


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([PEER, OutOfMemoryError("CUDA out of memory")], 1),
        ([PEER, KeyError("a bug on rank 1")], 1),
        ([SaveFailed({0: "rank 1 is gone"}, "step 5"), PEER, RayFailure("the process of rank 1 died")], 2),
        ([PEER, Diverged("the loss is nan")], 1),
        ([KeyError("first"), KeyError("second"), PEER], 0),
    ],
)
def test_of_what_several_ranks_ran_into_the_cause_is_told(errors: list[Exception], told: int) -> None:
    assert most_telling(errors) is errors[told]


def test_a_cause_is_not_waited_for_any_longer() -> None:
    causes = [
        OutOfMemoryError("CUDA"),
        RayFailure("died"),
        TrainingError("nan"),
        PEER,
        SaveFailed({0: "x"}, "step 5"),
        KeyError("y"),
    ]
    assert [is_cause(error) for error in causes] == [True, True, True, False, False, False]
