"""Out of memory on one of two ranks, with real nodes: half the micro batch, the same rows in every step."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.training.faults import MEMORY_FAULT
from checkpoints.keys import CommitRef
from cluster.event_reading import read_events
from cluster.recovery import StopReason
from cluster.runs.attempt_summary import summarize_attempts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_one_rank_out_of_memory_ends_the_attempt_and_the_next_has_half_the_micro_batch(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMORY_FAULT, "rank=1,step=5,micro_batch=4")
    bench.create(num_rows=24, train={"max_steps": 6})
    assert bench.wait_exit(bench.start()) is StopReason.OUT_OF_MEMORY
    end = bench.end_of(1)
    assert (end["stop_reason"], end["retryable"]) == ("out_of_memory", True)
    assert "the next attempt trains with a micro batch of 2 in place of 4, on the same rows" in end["detail"]
    assert bench.wait_exit(bench.start(2)) is StopReason.DONE
    assert bench.base_of(2) == CommitRef("train", 3, 1)

    events = read_events(bench.store)
    sizes = [one.micro_batch_size for one in summarize_attempts(bench.log.records(), events)]
    assert sizes == [4, 2]
    first, second = (
        {one.fields["step"]: one.fields for one in events if one.kind == "step" and one.attempt == attempt}
        for attempt in (1, 2)
    )
    assert set(second) == {4, 5, 6}
    assert second[4]["tokens"] == first[4]["tokens"], "the same global batch"
    assert second[4]["loss"] == pytest.approx(first[4]["loss"], abs=1e-5)
