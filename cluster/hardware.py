"""What is known about GPUs: memory and peak arithmetic, each with its source. An unknown GPU is None, never a guess."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One GPU model under its catalog name.

    Attributes:
        memory_gib: what a program can allocate at most, in GiB (2**30 bytes), as the driver reports it.
        peak_bf16_flops: dense bfloat16 multiply-adds per second x 2; where the vendor's sheet gives the figure with
            sparsity it was halved. None: the GPU has no bfloat16.
    """

    name: str
    memory_gib: float
    peak_bf16_flops: float | None


# Sources: memory: `GpuInfo` of SkyPilot's catalogs (MiB; the AWS rows, which come from DescribeInstanceTypes).
# Peaks: NVIDIA's data sheets: A100 (2021: 312 TFLOPS dense), H100 (2023: SXM 1,979 and PCIe 1,513 with sparsity,
# halved), H200 (2023: 1,979 with sparsity, halved), L4 (2023: 242 with sparsity, halved), L40S (2023: 733 with
# sparsity, halved and printed there as 362.05), A10 (2021: 125 dense), A10G (2021: 70 dense), V100 (no bfloat16).
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("V100", 16.0, None),
        Gpu("A10", 24.0, 125e12),
        Gpu("A10G", 22.35, 70e12),
        Gpu("L4", 22.35, 121e12),
        Gpu("L40S", 44.7, 362.05e12),
        Gpu("A100", 40.0, 312e12),
        Gpu("A100-80GB", 80.0, 312e12),
        Gpu("A100-80GB-SXM", 80.0, 312e12),
        Gpu("H100", 80.0, 989.5e12),
        Gpu("H100-SXM", 80.0, 989.5e12),
        Gpu("H200", 140.4, 989.5e12),
    )
}

# Some clouds sell the PCIe card of a GPU under the name that elsewhere means the SXM one; it is a quarter slower.
_PCIE_PEAKS = {"H100": 756.5e12}


def peak_bf16_flops(gpu_name: str, *, infra: str, instance_type: str) -> float | None:
    """Dense bfloat16 FLOPS per GPU of a machine on offer; None for a GPU that is not known.

    Lambda says pcie in the machine's name; RunPod sells H100-SXM under that name, so that its plain H100 is PCIe.
    """
    gpu = GPUS.get(gpu_name)
    if gpu is None:
        return None
    is_pcie = "pcie" in instance_type.lower() or (infra == "runpod" and not gpu_name.endswith("-SXM"))
    return _PCIE_PEAKS.get(gpu_name, gpu.peak_bf16_flops) if is_pcie else gpu.peak_bf16_flops
