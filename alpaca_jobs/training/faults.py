"""A fault on demand, so that drills and tests can have what only a full GPU does: a rank that runs out of memory.

ALPACA_JOBS_FAULT_MEMORY=rank=1,step=5,micro_batch=4 makes rank 1 raise torch's error at step 5, in every attempt that
trains with a micro batch of at least 4 rows. Nothing sets it but a person or a test.
"""

from __future__ import annotations

import os

import torch

MEMORY_FAULT = "ALPACA_JOBS_FAULT_MEMORY"


def run_out_of_memory(*, rank: int, step: int, micro_batch: int) -> None:
    """Raise what torch raises when a GPU is full, if it is asked for here.

    Raises:
        torch.OutOfMemoryError: it is.
    """
    asked = os.environ.get(MEMORY_FAULT)
    if not asked:
        return
    wanted = {name: int(value) for name, _, value in (part.partition("=") for part in asked.split(","))}
    if (rank, step) == (wanted["rank"], wanted["step"]) and micro_batch >= wanted["micro_batch"]:
        raise torch.OutOfMemoryError(f"CUDA out of memory. (Asked for by {MEMORY_FAULT}.)")
