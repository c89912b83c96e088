"""Dataset: rows of a run as one value that all ranks share: tokens, tokenizer and the number of steps that follow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.batching import total_steps
from alpaca_jobs.training.data import TrainingData
from alpaca_jobs.training.evaluation import split_rows
from alpaca_jobs.training.recipes import TrainingRow, build_tokenizer, load_training_rows, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """What a training run trains on.

    Attributes:
        tokenizer_files: {file name: bytes} of the tokenizer's folder.
        num_steps: optimizer updates of the whole training.
        evaluation: rows held out; None without `train.eval`.
    """

    rows: TrainingData
    tokenizer_files: dict[str, bytes]
    num_steps: int
    evaluation: TrainingData | None = None


def prepare_dataset(train: TrainSpec, rows: Sequence[TrainingRow] | str) -> Dataset:
    """Tokenize rows, or those in the file at a path or URI. The same input gives the same bytes in any process.

    Raises:
        DataError: no rows, unreadable rows, or nothing to learn from.
        ModelError: the base model or its tokenizer does not exist or cannot be used.
    """
    made = load_training_rows(rows, train) if isinstance(rows, str) else rows
    held_out: Sequence[TrainingRow] = ()
    if train.eval is not None and train.eval.file is not None:
        held_out = load_training_rows(train.eval.file, train)
    elif train.eval is not None and train.eval.fraction is not None:
        made, held_out = split_rows(made, fraction=train.eval.fraction, seed=train.seed)
    files = build_tokenizer(train, made)
    tokenized = prepare_rows(made, load_tokenizer(files), files, train)
    evaluation = prepare_rows(held_out, load_tokenizer(files), files, train) if held_out else None
    if tokenized.num_truncated:
        logger.warning(
            "%d of %d rows are longer than train.max_length %d and were cut; %d of them lost their whole answer",
            tokenized.num_truncated, len(tokenized), train.max_length, tokenized.num_without_target,
        )  # fmt: skip
    return Dataset(tokenized, files, count_steps(len(tokenized), train), evaluation)


def count_steps(num_rows: int, train: TrainSpec) -> int:
    """Optimizer updates of a whole training."""
    return total_steps(
        num_rows, global_batch_size=train.global_batch_size, epochs=train.epochs, max_steps=train.max_steps
    )  # fmt: skip
