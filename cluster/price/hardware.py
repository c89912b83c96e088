"""What is known about GPUs under their catalog names: memory and peak. An unknown GPU is None, never a guess.

Peaks stand in one place for the whole project, alpaca_jobs/training/flops.py, by the name torch gives a device; here
is only which catalog name means which device.
"""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_jobs.training.flops import peak_bf16_flops


@dataclass(frozen=True)
class Gpu:
    """One GPU model under its catalog name.

    Attributes:
        memory_gib: what a program can allocate at most, in GiB (2**30 bytes), as the driver reports it.
        device: what torch calls it, for its peak.
        link_bytes_per_s: that it can receive from the other GPUs of its machine: half of what the vendor names, which
            is both directions together.
    """

    name: str
    memory_gib: float
    device: str
    link_bytes_per_s: float


_PCIE_4, PCIE_5 = 32e9, 64e9  # bytes/s, 16 lanes
_NVLINK_2, _NVLINK_3, _NVLINK_4 = 150e9, 300e9, 450e9

# Source of memory: `GpuInfo` of SkyPilot's catalogs (MiB; the AWS rows, which come from DescribeInstanceTypes).
# Source of links: NVIDIA's data sheets (A10, L4, L40S: PCIe Gen4, 64 GB/s; NVLink: V100 300, A100 600, H100, H200 900).
GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("V100", 16.0, "Tesla V100", _NVLINK_2),
        Gpu("A10", 24.0, "NVIDIA A10", _PCIE_4),
        Gpu("A10G", 22.35, "NVIDIA A10G", _PCIE_4),
        Gpu("L4", 22.35, "NVIDIA L4", _PCIE_4),
        Gpu("L40S", 44.7, "NVIDIA L40S", _PCIE_4),
        Gpu("A100", 40.0, "NVIDIA A100", _NVLINK_3),
        Gpu("A100-80GB", 80.0, "NVIDIA A100", _NVLINK_3),
        Gpu("A100-80GB-SXM", 80.0, "NVIDIA A100", _NVLINK_3),
        Gpu("H100", 80.0, "NVIDIA H100", _NVLINK_4),
        Gpu("H100-SXM", 80.0, "NVIDIA H100", _NVLINK_4),
        Gpu("H200", 140.4, "NVIDIA H200", _NVLINK_4),
    )
}


def peak_flops(gpu_name: str, *, infra: str, instance_type: str) -> float | None:
    """Dense bfloat16 FLOPs per second of one GPU of a machine on offer; None for a GPU that is not known.

    Some clouds sell the PCIe card of a GPU, a quarter slower, under the name that elsewhere means the SXM one: Lambda
    says pcie in the machine's name; RunPod sells H100-SXM under that name, so that its plain H100 is PCIe.
    """
    gpu = GPUS.get(gpu_name)
    if gpu is None:
        return None
    is_pcie = _is_pcie(gpu_name, infra, instance_type)
    return peak_bf16_flops(f"{gpu.device} PCIe" if is_pcie else gpu.device)


def link_bytes_per_s(gpu_name: str, *, infra: str, instance_type: str) -> float:
    """What a known GPU of a machine on offer can receive from the others in it."""
    link = GPUS[gpu_name].link_bytes_per_s
    if not _is_pcie(gpu_name, infra, instance_type):
        return link
    return min(link, PCIE_5 if link == _NVLINK_4 else _PCIE_4)


def _is_pcie(gpu_name: str, infra: str, instance_type: str) -> bool:
    return "pcie" in instance_type.lower() or (infra == "runpod" and not gpu_name.endswith("-SXM"))
