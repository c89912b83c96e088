"""Model FLOPs per token and the peaks they are compared with; an unknown device has no peak, and so no MFU."""

from __future__ import annotations

PEAK_BF16_FLOPS: dict[str, float] = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA B200": 2250e12,
}
"""Dense bf16 tensor-core FLOPs per second by the beginning of torch's device name; the longest match counts.

Source: NVIDIA's data sheets, read 2026-11: A100 (2021-06) 312; H100 (2023) SXM 1,979, PCIe 1,513, NVL 1,671 and H200
(2024) 1,979, L4 242, L40S 724, B200 4,500, all printed "with sparsity" and halved here; A10G: AWS G5 page, 70 dense.
"""


def peak_bf16_flops(device_name: str) -> float | None:
    """Peak of a device by the name torch gives it, FLOPs per second; None if it is not in the table."""
    matches = [name for name in PEAK_BF16_FLOPS if device_name.startswith(name)]
    return PEAK_BF16_FLOPS[max(matches, key=len)] if matches else None


def model_flops(
    *, num_parameters: int, num_layers: int, hidden_size: int, tokens: int, sum_of_squared_lengths: int
) -> float:  # fmt: skip
    """FLOPs of forward and backward over a batch, recomputation not counted.

    6 per parameter and token for the matrices; attention adds 12 * layers * hidden * length per token, halved because a
    token looks only backwards. Source: PaLM, arXiv:2204.02311, appendix B (their L * H * Q is layers * hidden here).

    Args:
        num_parameters: those that take part in a matrix product: without an input embedding that is not also the
            output's.
        sum_of_squared_lengths: over the rows of the batch; attention does not cross rows.
    """
    return 6.0 * num_parameters * tokens + 6.0 * num_layers * hidden_size * sum_of_squared_lengths


def mfu(flops: float, *, seconds: float, peak_flops: float | None, num_devices: int) -> float | None:
    """Fraction of the peak of all devices that the model's FLOPs amount to; None without a peak."""
    return None if peak_flops is None else flops / (seconds * peak_flops * num_devices)
