"""Every error class of the rooms says whether retrying can help and which exit code it stands for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import alpaca_jobs.errors
import cluster.errors


def _tree(base: type[Exception]) -> Iterator[type[Exception]]:
    yield base
    for child in base.__subclasses__():
        yield from _tree(child)


CLASSES = [
    found
    for base in (alpaca_jobs.errors.AlpacaError, cluster.errors.ClusterError)
    for found in _tree(base)
    if found.__module__ in ("alpaca_jobs.errors", "cluster.errors")
]


@pytest.mark.parametrize("error", CLASSES)
def test_class_says_retryable_exit_code_and_what_it_means(error: type[Exception]) -> None:
    assert isinstance(vars(error).get("retryable", getattr(error, "retryable", None)), bool)
    is_failure = error is not cluster.errors.AwaitingReview  # a stop that somebody asked for
    assert getattr(error, "exit_code", None) in ((1, 2, 3, 4) if is_failure else (0,))
    assert error.__doc__


def test_what_may_be_tried_again() -> None:
    retryable = {error.__name__ for error in CLASSES if getattr(error, "retryable", False)}
    assert retryable == {
        "TeacherUnreachable", "TeacherRateLimited", "NoCapacity", "NodeLost", "RayFailure", "LaunchFailed"
    }  # fmt: skip


def test_wrong_input_is_never_retryable() -> None:
    assert not [
        error for error in CLASSES if getattr(error, "exit_code", 0) == 2 and getattr(error, "retryable", False)
    ]


def test_rate_limit_keeps_what_the_server_asked_for() -> None:
    assert alpaca_jobs.errors.TeacherRateLimited("slow down", retry_after_s=3.0).retry_after_s == 3.0
    assert alpaca_jobs.errors.SpecError("one").problems == ("one",)
