"""The step's one all-reduce: what a rank knows and what lies on its device arrive in one tensor, with every bit."""

from __future__ import annotations

import math

import pytest
import torch

from alpaca_jobs.training.agreement import Told, agree, is_finite
from alpaca_jobs.training.peak_memory import peak_memory_bytes

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_rank")


def test_tensors_and_numbers_say_the_same_to_the_last_bit() -> None:
    loss, norm = 1.0 / 3.0, math.pi * 1e-9
    numbers = Told(loss, norm, stop=True, notice_s=4.5, interval=7, estimate_s=0.1, memory_bytes=2**52 + 1)
    scalars = Told(
        torch.tensor(loss, dtype=torch.float64), torch.tensor(norm, dtype=torch.float64),
        stop=True, notice_s=4.5, interval=7, estimate_s=0.1, memory_bytes=2**52 + 1,
    )  # fmt: skip
    told = [agree(one, rank=0, world_size=1, device=CPU) for one in (numbers, scalars)]
    assert told[0] == told[1]
    assert (told[0].loss_sum, told[0].squared_norm, told[0].memory_bytes) == (loss, norm, 2**52 + 1)
    assert (told[0].stop, told[0].notice_s, told[0].interval, told[0].estimate_s) == (True, 4.5, 7, 0.1)


def test_no_notice_is_none_and_a_norm_that_is_no_number_is_found() -> None:
    one = Told(1.0, torch.tensor(math.nan), stop=False, notice_s=None, interval=1, estimate_s=0.0)
    agreed = agree(one, rank=0, world_size=1, device=CPU)
    assert (agreed.notice_s, agreed.stop) == (None, False)
    assert not is_finite(agreed)


def test_a_cpu_process_tells_the_peak_of_its_resident_set() -> None:
    before = peak_memory_bytes(CPU)
    held = torch.ones(64 * 2**20)  # 256 MiB, every page written
    assert held.sum() == held.numel()
    assert 50 * 2**20 < before <= peak_memory_bytes(CPU)
    assert peak_memory_bytes(CPU) >= held.nbytes
