"""What to change in a job that does not fit, tried out one after the other: only what then fits is proposed. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alpaca_jobs.known_models import SizedModel
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.spec_train import LoraSpec
from cluster.price.memory_fit import Machines, memory_fit


def advice(
    train: TrainSpec,
    model: SizedModel,
    machines: Machines,
    *,
    row_tokens: float | None = None,
    host_gib: float | None = None,
) -> tuple[str, ...]:
    """Changes of the job's train part with which it fits on the same machines, the smallest of each kind, as they are
    written in a job: "train.micro_batch_size: 2".

    Args:
        host_gib: memory of the largest such machine, for cpu_offload; None where that is not known.
    """
    found = []
    for kind in _kinds(train, machines):
        for changes in kind:
            fit = memory_fit(_changed(train, changes), model, machines, row_tokens=row_tokens)
            if fit is not None and fit.fits and fit.fits_host(host_gib):
                found.append(" and ".join(f"train.{key}: {_written(value)}" for key, value in changes.items()))
                break
    return tuple(found)


def _kinds(train: TrainSpec, machines: Machines) -> Iterator[Sequence[Mapping[str, Any]]]:
    """Kinds of changes, the cheapest in speed first; of each kind, the smallest first."""
    again = {} if train.gradient_checkpointing is True else {"gradient_checkpointing": True}
    smaller = [train.micro_batch_size // 2**n for n in range(1, train.micro_batch_size.bit_length())]
    one = {"micro_batch_size": 1} if train.micro_batch_size > 1 else {}
    light = [
        *({"micro_batch_size": number} for number in smaller),
        *([again] if again else []),
        *([again | one] if again and one else []),
    ]
    yield light
    if train.engine in ("ddp", "deepspeed-zero2") and machines.num_gpus > 1:
        yield [{"engine": "fsdp"} | more for more in ({}, *light)]
    if not train.cpu_offload:
        engine = {} if train.engine in ("auto", "fsdp", "deepspeed-zero3") else {"engine": "fsdp"}
        yield [{**engine, "cpu_offload": True} | more for more in ({}, *light)]
    if train.method == "full":
        yield [{"method": "lora"} | more for more in ({}, *light)]


def _changed(train: TrainSpec, changes: Mapping[str, Any]) -> TrainSpec:
    lora = {"lora": LoraSpec()} if changes.get("method") == "lora" else {}
    return train.model_copy(update={**changes, **lora})


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
