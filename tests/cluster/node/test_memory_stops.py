"""Out of memory: the next attempt has half the micro batch, and the same rows in the same steps."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.training.batching import plan_step
from alpaca_jobs.training.fingerprint import train_fingerprint
from checkpoints.lineage import AttemptRecord
from cluster.node.failures import Failure, describe_failure
from cluster.node.memory_stops import say_what_follows, with_less_memory
from cluster.plan import Placement, Pricing
from cluster.recovery import decide
from cluster.recovery_policy import RecoveryPolicy
from cluster.recovery_table import Action
from cluster.stop import Stop, StopReason

PLACE = Placement("local", "a", None, "process", Pricing.SPOT, 0.0, 1)


def job(**train: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "j",
            "data": {"teacher": "offline"},
            "train": {"model": "tiny-llama", "micro_batch_size": 4, **train},
            "compute": {"workers": 1, "infra": ["local"]},
        }
    )


def ends(*reasons: str | None) -> list[AttemptRecord]:
    return [
        AttemptRecord(number, {}, True, None, None if reason is None else {"stop_reason": reason})
        for number, reason in enumerate(reasons, start=1)
    ]


@pytest.mark.parametrize(
    ("before", "size"),
    [
        ((), 4), (("preempted",), 4), (("out_of_memory",), 2), (("out_of_memory", "preempted", None), 2),
        (("out_of_memory", "out_of_memory"), 1), (("out_of_memory",) * 5, 1),
    ],
)  # fmt: skip
def test_each_stop_for_memory_halves_it_and_it_stays_so(before: tuple[str | None, ...], size: int) -> None:
    after = with_less_memory(job(), ends(*before, "out_of_memory"), len(before) + 1)  # its own end is none of those
    assert after.train.micro_batch_size == size
    rows = [
        plan_step(3, seed=1, lengths=range(1, 200), global_batch_size=128, micro_batch_size=one, world_size=2).rows
        for one in (4, size)
    ]
    assert rows[0] == rows[1]
    prints = {train_fingerprint(one.train, data_digest="d", tokenizer_files={}) for one in (job(), after)}
    assert len(prints) == 1, "its checkpoints are gone on from"


def test_where_the_micro_batch_is_the_mathematics_or_not_ours_it_stays() -> None:
    published = job(loss_average="micro_batch")
    own = job(method="command", command="python train.py")
    for one in (published, own):
        assert with_less_memory(one, ends("out_of_memory"), 2) == one
    stopped = say_what_follows(Failure(StopReason.OUT_OF_MEMORY, "no memory"), published.train)
    assert not stopped.retryable
    assert "another training" in stopped.words
    assert say_what_follows(Failure(StopReason.OUT_OF_MEMORY, "no memory"), own.train).retryable


def test_a_run_halves_down_to_one_and_then_ends_in_words() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch calls it."""

    records: list[AttemptRecord] = []
    sizes, history = [], []
    for attempt in range(1, 9):
        train = with_less_memory(job(), records, attempt).train
        sizes.append(train.micro_batch_size)
        failure = say_what_follows(describe_failure(OutOfMemoryError("CUDA out of memory")), train)
        records = ends(*["out_of_memory"] * attempt)
        history.append(
            Stop(attempt, failure.reason, PLACE, 0.0, detail=failure.words, retryable=failure.retryable)
        )  # fmt: skip
        decision = decide(history, RecoveryPolicy(), [PLACE], now=0)
        if decision.action is Action.GIVE_UP:
            break
    assert sizes == [4, 2, 1]
    assert "a micro batch of 2 in place of 4" in history[0].detail
    assert "micro_batch_size is 1 already" in history[-1].detail
    assert "Lower train.micro_batch_size" not in decision.words, "it cannot be lower"
    assert "train.gradient_checkpointing" in decision.words
