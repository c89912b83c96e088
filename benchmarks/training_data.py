"""What training.py measures with: rows of Alpaca's lengths, a tokenizer's files, our loop on one rank."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.tokenizer import build_tokenizer, read_folder, write_folder

ALPACA_COUNTS = (
    900, 4250, 6100, 7550, 5500, 3980, 3950, 3480, 3400, 2820, 2180, 1820, 1330, 950, 820, 550, 430, 330, 270, 220, 200,
    150, 140, 100, 90, 80, 70, 60, 55, 50, 45, 40, 35, 30, 25, 25, 20, 20, 15, 15,
)  # fmt: skip
"""Rows of Alpaca's 52,002 by tokens, in bins 12.6 wide from 42 on. Source: a published histogram of their lengths under
LLaMA's tokenizer with template and EOS, read off within a few percent (2026-11)."""
BIN_WIDTH, FIRST_BIN = 12.6, 42


def alpaca_lengths(number: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Lengths drawn from Alpaca's histogram, (number,) int64."""
    generator = np.random.default_rng(seed)
    counts = np.asarray(ALPACA_COUNTS, dtype=np.float64)
    bins = generator.choice(len(counts), size=number, p=counts / counts.sum())
    return np.asarray(FIRST_BIN + BIN_WIDTH * (bins + generator.random(number)), dtype=np.int64)


def alpaca_rows(number: int, *, vocab_size: int, seed: int = 0) -> TokenizedRows:
    """Random tokens in rows of Alpaca's lengths; the second half of each row is its answer."""
    lengths = alpaca_lengths(number, seed=seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(seed + 1).integers(3, vocab_size, int(offsets[-1])).astype(np.int32)
    places = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths)
    is_target = places >= np.repeat(lengths // 2, lengths)
    return TokenizedRows(tokens=tokens, offsets=offsets, is_target=is_target, num_truncated=0, num_without_target=0)


def padded_tokens(lengths: npt.NDArray[np.int64], order: Sequence[Sequence[int]], size: int) -> int:
    """Tokens computed when every `size` rows in order are padded to their longest."""
    groups = [batch[begin : begin + size] for batch in order for begin in range(0, len(batch), size)]
    return int(sum(len(group) * lengths[list(group)].max() for group in groups))


def tokenizer_folder(folder: Path) -> None:
    """Put a small tokenizer's files beside a model."""
    write_folder(build_tokenizer("tiny-llama", ["Below is an instruction that describes a task."]), folder)


class _Control:
    """Keeps the seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def loaded(self, ref: Any, fallbacks: Any) -> None: ...

    def stepped(self, metrics: Any) -> None:
        self.seconds.append(metrics.seconds)

    def evaluated(self, report: Any) -> None: ...

    def saved(self, result: Any) -> None: ...

    def notice(self) -> None:
        return None

    def stop_requested(self) -> bool:
        return False


def run_ours(
    train: TrainSpec, checkpoints: CheckpointSpec, data: TokenizedRows, folder: Path, *, threads: int
) -> list[float]:
    """Train on one rank, in this process; returns the seconds of every step."""
    import torch.distributed as dist

    from alpaca_jobs.run_layout import LAYOUT
    from alpaca_jobs.training.control import TrainContext
    from alpaca_jobs.training.loop import run_training
    from checkpoints.store import Store
    from checkpoints.torch_bridge import Checkpointer

    control = _Control()
    files = {name: blob for name, blob in read_folder(folder).items() if name.startswith("tokenizer")}
    with tempfile.TemporaryDirectory() as scratch:
        dist.init_process_group("gloo", init_method=f"file://{scratch}/meet", rank=0, world_size=1)
        checkpointer = Checkpointer(
            Store.open(f"file://{scratch}/store"), LAYOUT, stage="train", attempt=1, fence=None, keep=None
        )
        try:
            run_training(
                TrainContext(
                    train=train,
                    checkpoints=checkpoints,
                    rank=0,
                    world_size=1,
                    rows=data,
                    tokenizer_files=files,
                    checkpointer=checkpointer,
                    candidates=[],
                    control=control,
                    threads=threads,
                )
            )
        finally:
            checkpointer.close()
            dist.destroy_process_group()
    return control.seconds
