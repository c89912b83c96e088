"""What training.py and training_gpu.py share: rows of Alpaca's lengths, a tokenizer's files, our loop on one rank."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.loop import run_training
from alpaca_jobs.training.metrics import StepMetrics
from alpaca_jobs.training.saving import SaveReport
from alpaca_jobs.training.tokenizer import build_tokenizer, read_folder, write_folder
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer

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


class Control:
    """Keeps what a training says of its steps and saves.

    Attributes:
        metrics: of every step.
        ends: when each of them had ended, by `time.perf_counter`.
        saves: every save that has ended.
        records_base: called with what was loaded.
    """

    def __init__(self) -> None:
        self.metrics: list[StepMetrics] = []
        self.ends: list[float] = []
        self.saves: list[SaveReport] = []
        self.records_base: Callable[[CommitRef | None], object] = lambda ref: None

    def loaded(self, ref: CommitRef | None, fallbacks: Sequence[str]) -> None:
        self.records_base(ref)

    def stepped(self, metrics: StepMetrics) -> None:
        self.metrics.append(metrics)
        self.ends.append(time.perf_counter())

    def evaluating(self) -> None: ...

    def evaluated(self, report: Any) -> None: ...

    def saved(self, result: SaveReport) -> None:
        self.saves.append(result)

    def notice(self) -> float | None:
        return None

    def stop_requested(self) -> bool:
        return False


@contextmanager
def one_rank(
    train: TrainSpec,
    checkpoints: CheckpointSpec,
    data: TokenizedRows,
    folder: Path,
    *,
    threads: int,
    control: Control,
    device: str = "cpu",
    run: Path | None = None,
) -> Iterator[TrainContext]:
    """What `run_training` is given, with this process as its only rank.

    Args:
        folder: the model's; its tokenizer counts.
        run: where the run's state lies, to go on from it: the attempt is the next one, and the one before counts as
            lost. None: a folder that is gone afterwards.
    """
    import torch.distributed as dist

    files = {name: blob for name, blob in read_folder(folder).items() if name.startswith("tokenizer")}
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.open(f"file://{run or scratch + '/run'}")
        log = AttemptLog(store, LAYOUT)
        attempt = log.newest() + 1
        log.claim(attempt, {})
        if attempt > 1:
            log.put_end(attempt - 1, {"stop_reason": "lost", "by_attempt": attempt})
        candidates = counting_commits(log.records(), list_commits(store, LAYOUT, "train"), LAYOUT)
        control.records_base = partial(log.put_base, attempt)
        backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"  # as cluster/node/train_worker.py does
        dist.init_process_group(backend, init_method=f"file://{scratch}/meet", rank=0, world_size=1)
        checkpointer = Checkpointer(
            store, LAYOUT, stage="train", attempt=attempt, fence=Fence(log, attempt), keep=checkpoints.keep
        )
        try:
            yield TrainContext(
                train=train,
                checkpoints=checkpoints,
                rank=0,
                world_size=1,
                rows=data,
                tokenizer_files=files,
                checkpointer=checkpointer,
                candidates=candidates,
                control=control,
                threads=threads,
                device=device,
            )
        finally:
            checkpointer.close()
            dist.destroy_process_group()


def run_ours(
    train: TrainSpec, checkpoints: CheckpointSpec, data: TokenizedRows, folder: Path, *, threads: int
) -> list[float]:
    """Train on one rank, in this process, on its CPU; returns the seconds of every step."""
    control = Control()
    with one_rank(train, checkpoints, data, folder, threads=threads, control=control) as ctx:
        run_training(ctx)
    return [metrics.seconds for metrics in control.metrics]
