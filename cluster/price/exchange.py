"""What the GPUs of a job send to each other while it trains, and how long that takes at least. Pure.

With P, T, d and W as in memory_fit.py, each GPU receives (W - 1) / W of this many bytes:

    engine        with every micro batch         with every step
    fsdp          2 d P, and 4 T if not held     4 T if held (memory_fit.HELD_SHARE)
    zero3         2 d P                          4 T
    ddp, zero2                                   4 T

Parameters come twice, for the forward and for the backward pass, and gradients once, in float32. What is sent overlaps
with what is computed, so that a step takes the longer of the two, and links are taken at what their vendor says: a
training may take longer, and cannot be quicker. The same goes for the network between machines, which is no faster.

Source: alpaca_jobs/training/engines/fsdp.py; ZeRO, arXiv:1910.02054, section 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from alpaca_jobs.spec import TrainSpec
from cluster.price.activations import dtype_bytes
from cluster.price.hardware import GPUS, PCIE_5
from cluster.price.memory_fit import HELD_SHARE, engine_of
from cluster.price.workload import Workload


@dataclass(frozen=True)
class Exchange:
    """What one GPU receives.

    Attributes:
        micro_batches: of a step, on each GPU.
        step_bytes: in one step. link_bytes_per_s: at most.
        seconds: over all steps.
        ways: to make it shorter, for the end of a sentence.
    """

    micro_batches: int
    step_bytes: float
    link_bytes_per_s: float
    seconds: float
    ways: str


def exchange_of(train: TrainSpec, work: Workload, *, gpu: str, link_bytes_per_s: float, ranks: int) -> Exchange:
    """Count it for a training on so many GPUs; nothing for one of them.

    Args:
        gpu: by its catalog name, one that is known.
        link_bytes_per_s: what it can receive from the others (cluster/price/hardware.py).
    """
    engine, gradients = engine_of(train, ranks), 4.0 * work.trained_parameters
    micro_batches = math.ceil(train.global_batch_size / (ranks * train.micro_batch_size))
    gathered = 2.0 * dtype_bytes(train) * work.num_parameters if engine in ("fsdp", "deepspeed-zero3") else 0.0
    is_held = not train.cpu_offload and gradients <= HELD_SHARE * GPUS[gpu].memory_gib * 2**30
    reductions = micro_batches if engine == "fsdp" and not is_held else 1
    step_bytes = (micro_batches * gathered + reductions * gradients) * (ranks - 1) / ranks
    seconds = work.steps * step_bytes / link_bytes_per_s
    return Exchange(micro_batches, step_bytes, link_bytes_per_s, seconds, _ways(gathered > 0, link_bytes_per_s))


def _ways(is_gathered: bool, link_bytes_per_s: float) -> str:
    fewer = "a larger train.micro_batch_size, or train.engine: ddp where each GPU holds the model"
    ways = [fewer] if is_gathered else ["fewer GPUs"]
    return ", or ".join(ways + (["GPUs with NVLink"] if link_bytes_per_s <= PCIE_5 else []))
