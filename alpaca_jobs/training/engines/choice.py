"""Which engine trains a job: the rule behind `engine: auto`, and what each engine promises. Pure, without torch."""

from __future__ import annotations

from typing import Literal

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec

EngineName = Literal["fsdp", "ddp", "single", "deepspeed-zero2", "deepspeed-zero3"]


def choose_engine(train: TrainSpec, *, world_size: int) -> tuple[EngineName, str]:
    """The engine, and why in words.

    `auto` is single on one rank, where there is nothing to spread, unless parameters are to be kept in host memory, and
    fsdp on several.

    Raises:
        TrainingError: `engine: single` on several ranks.
    """
    if train.engine == "single" and world_size > 1:
        raise TrainingError(
            f"train.engine is single, but there are {world_size} ranks, which would each train a model of their own. "
            "Set engine: ddp or auto, or compute.workers: 1."
        )
    if train.engine != "auto":
        return train.engine, f"engine {train.engine}, as the job says"
    if world_size == 1 and not train.cpu_offload:
        return "single", "engine single: one rank, so nothing is spread"
    if world_size == 1:
        return "fsdp", "engine fsdp: it keeps the parameters in host memory"
    spread = "sharded inside each machine and copied between them" if train.sharding == "hybrid" else "sharded over all"
    return "fsdp", f"engine fsdp: parameters, gradients and optimizer {spread} ({world_size} ranks)"
