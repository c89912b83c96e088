"""The most memory that a training process has had so far, and what its machine has left."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Bytes that tensors took at most on this process's GPU; on a CPU, the peak of the process's resident set.

    Neither waits for the device. Source of the unit: getrusage(2), ru_maxrss is in KiB on Linux and in bytes on macOS.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory_bytes() -> int | None:
    """What this machine can still give without swapping; None where it does not say. Source: proc_meminfo(5),
    MemAvailable, in KiB.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
