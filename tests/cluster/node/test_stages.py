"""What ends a stage means for that stage: rows that need too much memory are no reason to halve a micro batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import RayFailure
from cluster.node import stages
from cluster.node.failures import describe_failure
from cluster.recovery import StopReason


def test_memory_that_is_short_while_rows_are_written_is_no_stop_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> None:
        raise MemoryError("an actor was ended for memory.")

    monkeypatch.setattr(stages, "GenerateStage", lambda *_: SimpleNamespace(run=run))
    job = SimpleNamespace(data=SimpleNamespace(from_=None))
    ctx: Any = SimpleNamespace(job=job, commits=lambda _: ())
    runtime: Any = SimpleNamespace()
    with pytest.raises(
        RayFailure, match=r"while rows were written: an actor was ended for memory\. .*num_actors"
    ) as told:
        stages._rows(ctx, runtime, base_is_open=False)
    assert describe_failure(told.value).reason is StopReason.CRASHED
