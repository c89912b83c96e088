"""Rows, generated or from a file, to what every training rank gets: tokens and the tokenizer's files. Made once a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.batching import total_steps
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.recipes import TrainingRow, build_tokenizer, load_training_rows, tokenize_rows
from alpaca_jobs.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Dataset:
    """What training runs on.

    Attributes:
        rows: all rows as tokens.
        tokenizer_files: the tokenizer's folder as {file name: bytes}.
        num_steps: optimizer steps the whole training has.
    """

    rows: TokenizedRows
    tokenizer_files: Mapping[str, bytes]
    num_steps: int


def prepare_dataset(train: TrainSpec, rows: Sequence[TrainingRow] | str) -> Dataset:
    """Tokenize rows, or the rows of the file at a URI; the same input gives the same bytes in any process.

    Raises:
        DataError: rows that cannot be read, or leave nothing to learn from.
        ModelError: the model or its tokenizer does not exist.
    """
    examples = load_training_rows(rows, train) if isinstance(rows, str) else rows
    files = build_tokenizer(train, examples)
    tokens = tokenize_rows(examples, load_tokenizer(files), train)
    steps = total_steps(
        len(tokens), global_batch_size=train.global_batch_size, epochs=train.epochs, max_steps=train.max_steps
    )
    return Dataset(rows=tokens, tokenizer_files=files, num_steps=steps)
