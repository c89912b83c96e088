"""What training_gpu.py aims at, the verdicts, and alpaca-7b.yaml's GPU hours by arithmetic."""

from __future__ import annotations

import math

from gpu_training.models import SHAPES
from training_data import alpaca_lengths

from alpaca_jobs.training.flops import model_flops

MFU_AIM, MFU_TARGET = 0.46, 0.50
PADDED_AIM = 3.0
SAVES_AIM = 0.01
PUBLISHED_GPU_HOURS = 24.0
"""3 hours on 8 A100-80GB. Source: crfm.stanford.edu/2023/03/13/alpaca.html (read 2026-11)."""
HOURS_AIM = PUBLISHED_GPU_HOURS / 10
PUBLISHED_GPU = "NVIDIA A100"
ALPACA_ROWS, ALPACA_EPOCHS = 52_002, 3
NUM_GPUS, GLOBAL_BATCH = 8, 128
LINK_BYTES_PER_S = 300e9
"""Into one A100-SXM at a time: NVLink's 600 GB/s are of both directions. Source: NVIDIA's data sheet of the A100
(2021-06, read 2026-11). Collectives reach less of it, and overlap with computing; neither is counted."""


class Verdicts:
    """Which aims were met. What is measured on tiny shapes says nothing about any."""

    def __init__(self, *, is_tiny: bool) -> None:
        self._is_tiny = is_tiny
        self._counts = {"met": 0, "not met": 0, "not measured": 0}
        self._broke = 0

    def judge(self, what: str, *, is_met: bool) -> None:
        """An aim beside what was measured."""
        if self._is_tiny:
            print(f"{what}. (tiny: this figure means nothing)", flush=True)
            return
        self._counts["met" if is_met else "not met"] += 1
        print(f"{what}. aim met: {'yes' if is_met else 'no'}", flush=True)

    def not_measured(self, what: str, why: str) -> None:
        """An aim that nothing can be said about here."""
        self._counts["not measured"] += 1
        said = "" if self._is_tiny else "aim met: no "
        print(f"{what}. {said}(not measured: {why})", flush=True)

    def broke(self, what: str, why: str) -> None:
        """A measurement that ended in an error; with tiny shapes too that is no good end."""
        self._broke += 1
        print(f"{what}: it broke: {why}", flush=True)

    def end(self) -> int:
        """Print the last line; returns the exit code: 1 if an aim was not met, or anything broke."""
        if self._is_tiny:
            print(f"\ntiny shapes: every figure above means nothing, no aim counts; {self._broke} broke, "
                  f"{self._counts['not measured']} not measured")  # fmt: skip
        else:
            counts = ", ".join(f"{number} {name}" for name, number in self._counts.items())
            print(f"\naims: {counts}; {self._broke} measurements broke")
        return 1 if self._counts["not met"] or self._broke else 0


def alpaca_7b_flops() -> float:
    """FLOPs of the published training: LLaMA-7B, three passes over rows of Alpaca's lengths."""
    shape, lengths = SHAPES["LLaMA-7B"], alpaca_lengths(ALPACA_ROWS)
    return ALPACA_EPOCHS * model_flops(
        num_parameters=shape.num_parameters - shape.vocab * shape.hidden,  # the input embedding is looked up
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        tokens=int(lengths.sum()),
        sum_of_squared_lengths=int((lengths**2).sum()),
    )


def gpu_hours(mfu: float, peak_flops: float) -> float:
    """GPU hours of that training, at an MFU on GPUs of this peak."""
    return alpaca_7b_flops() / (mfu * peak_flops) / 3600


def exchange_gpu_hours(*, micro_batches: int) -> float:
    """GPU hours of that training's exchange on the published 8 GPUs, with nothing of it hidden behind computing.

    FSDP2 shards in full: for every micro batch each GPU gathers the bfloat16 parameters before the forward pass and
    again before the backward pass, and reduces float32 gradients (engines/fsdp.py, a model of this size); of each it
    receives the seven eighths that others have. Source: arXiv:1910.02054 (ZeRO), section 7.2.
    """
    received = micro_batches * (2 + 2 + 4) * SHAPES["LLaMA-7B"].num_parameters * (NUM_GPUS - 1) / NUM_GPUS
    steps = ALPACA_EPOCHS * math.ceil(ALPACA_ROWS / GLOBAL_BATCH)
    return NUM_GPUS * steps * received / LINK_BYTES_PER_S / 3600
