"""FLOPs against worked examples; an unknown device has no peak and no MFU."""

from __future__ import annotations

import pytest

from alpaca_jobs.training.flops import mfu, model_flops, peak_bf16_flops


def test_the_longest_name_decides() -> None:
    assert peak_bf16_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_bf16_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_bf16_flops("NVIDIA A100-SXM4-80GB") == 312e12


def test_an_unknown_device_gets_no_guess() -> None:
    assert peak_bf16_flops("Some GPU 9000") is None
    assert mfu(1e12, seconds=1.0, peak_flops=None, num_devices=8) is None


def test_alpaca_7b_is_eight_times_ten_to_the_seventeen() -> None:
    # FACTS.md: 6 x 6.74e9 x 6.66e6 x 3 = 8.1e17; attention over rows of about 128 tokens adds little.
    matrices = model_flops(
        num_parameters=6_738_415_616, num_layers=0, hidden_size=0, tokens=3 * 6_660_000, sum_of_squared_lengths=0
    )  # fmt: skip
    assert matrices == pytest.approx(8.1e17, rel=0.01)
    whole = model_flops(
        num_parameters=6_738_415_616,
        num_layers=32,
        hidden_size=4096,
        tokens=1280,
        sum_of_squared_lengths=10 * 128**2,
    )
    assert whole / (6 * 6_738_415_616 * 1280) == pytest.approx(1.0025, abs=5e-4)
    assert mfu(312e12, seconds=2.0, peak_flops=312e12, num_devices=1) == 0.5
