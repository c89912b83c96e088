"""What makes a step repeatable: fixed threads, deterministic kernels, and randomness that depends on the data alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from alpaca_jobs.training.lean_imports import demand_deterministic


@contextmanager
def exact_mode(*, bits: bool, threads: int) -> Iterator[None]:
    """Fix the number of CPU threads (sums in another order have other bits) and, for `bits`, demand deterministic
    kernels.

    Put back afterwards, so that a caller's process is as it was.
    """
    threads_before, bits_before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fill_before = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    if bits:
        # Source: cuBLAS documentation, "Results reproducibility"; read when cuBLAS makes its handle.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        demand_deterministic(is_demanded=True)
        # Fills every new tensor with NaN: a search aid for reads of unset memory, at the price of one more write each.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        demand_deterministic(is_demanded=bits_before)
        torch.utils.deterministic.fill_uninitialized_memory = fill_before  # type: ignore[attr-defined]


def seed_forward(seed: int, step: int, first_row: int) -> None:
    """Seed torch's generators for one forward pass: dropout then depends on (seed, step, first row), on no rank and no
    past.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{first_row}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
