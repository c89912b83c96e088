"""Does a model fit? One documented rule for the whole job, until measured throughput and activations replace it.

Full fine-tuning keeps about 16 bytes a parameter (float32 parameter, gradient, and AdamW's two moments: 4 x 4 bytes),
sharded evenly over all GPUs (REFERENCE.md: 7B takes 112 GB). A fifth of each GPU is left to activations, gathered
layers and the allocator, so the state has to fit into 80 % of the job's GPU memory together.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.price.hardware import GPUS

BYTES_PER_PARAMETER = 16
STATE_SHARE = 0.8
_GIB = 2**30


@dataclass(frozen=True)
class MemoryFit:
    """State against memory, with the factors it was made of."""

    num_parameters: int
    gpu_name: str
    num_gpus: int
    memory_gib: float
    state_gib: float

    @property
    def fits(self) -> bool:
        """Whether the state leaves a fifth of the memory free."""
        return self.state_gib <= STATE_SHARE * self.memory_gib

    def __str__(self) -> str:
        return (
            f"{self.num_parameters / 1e9:.2f} B parameters x {BYTES_PER_PARAMETER} bytes = {self.state_gib:.0f} GiB of "
            f"state, and {self.num_gpus} x {self.gpu_name} hold {self.memory_gib:.0f} GiB, of which "
            f"{STATE_SHARE:.0%} may be state"
        )


def memory_fit(num_parameters: int, *, gpu_name: str, num_gpus: int) -> MemoryFit | None:
    """Compare the state of full fine-tuning with the memory of all GPUs of the job; None for an unknown GPU."""
    gpu = GPUS.get(gpu_name)
    if gpu is None:
        return None
    state_gib = num_parameters * BYTES_PER_PARAMETER / _GIB
    return MemoryFit(num_parameters, gpu_name, num_gpus, gpu.memory_gib * num_gpus, state_gib)
