"""After a stop for memory the next attempts train with half the micro batch. Pure.

Which rows a step sees does not depend on it, so the run is the same training; accumulation follows by itself. What an
attempt trains with follows from the ends of those before it, which the store keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alpaca_jobs.spec import JobSpec, TrainSpec
from checkpoints.lineage import AttemptRecord
from cluster.node.failures import Failure
from cluster.stop import StopReason


def with_less_memory(job: JobSpec, records: Sequence[AttemptRecord], attempt: int) -> JobSpec:
    """The job as an attempt trains it: its micro batch halved for each earlier one that ran out of memory.

    A command of the user's own and `loss_average: micro_batch`, where the micro batch is part of the mathematics, are
    left as they are.
    """
    stops = sum(
        record.number < attempt and (record.end or {}).get("stop_reason") == StopReason.OUT_OF_MEMORY.value
        for record in records
    )
    if not stops or not _may_change(job.train):
        return job
    size = max(1, job.train.micro_batch_size >> stops)
    return job.model_copy(update={"train": job.train.model_copy(update={"micro_batch_size": size})})


def trained_micro_batch(job: JobSpec) -> int | None:
    """The micro batch that an attempt of this job trains with, for its claim; None where we do not train."""
    return job.train.micro_batch_size if "train" in job.stages and job.train.method != "command" else None


def say_what_follows(failure: Failure, train: TrainSpec) -> Failure:
    """A stop for memory with what the next attempt does about it; where nothing can be done, trying again is no use.

    Args:
        train: as the attempt trained it.
    """
    if failure.reason is not StopReason.OUT_OF_MEMORY or train.method == "command":
        return failure
    size = train.micro_batch_size
    if size > 1 and _may_change(train):
        words = f"the next attempt trains with a micro batch of {size // 2} in place of {size}, on the same rows"
        return replace(failure, words=f"{failure.words}; {words}")
    other = f"is {size}, and with loss_average: micro_batch another one would be another training"
    why = "is 1 already" if size == 1 else other
    return replace(failure, words=f"{failure.words}; train.micro_batch_size {why}", retryable=False)


def _may_change(train: TrainSpec) -> bool:
    return train.method != "command" and train.loss_average == "token"
