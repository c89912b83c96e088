"""Dataset: rows of a run as one value that all ranks share: tokens, tokenizer and the number of steps that follow."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from alpaca_jobs.data.streams import local_file
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.batching import total_steps
from alpaca_jobs.training.data import EncodedRow, TrainingData
from alpaca_jobs.training.evaluation import held_out_bound, is_held_out
from alpaca_jobs.training.mixing import MixedRows
from alpaca_jobs.training.reading import RowFile, TrainingRow, load_training_rows
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.stored import FlatFile, StoredRows, open_stored, store_rows
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


def prepare_dataset(
    train: TrainSpec, rows: Sequence[TrainingRow] | str, *, folder: Path | None = None
) -> Dataset:  # fmt: skip
    """Tokenize rows, or those in the file at a path or URI. The same input gives the same bytes in any process.

    Args:
        folder: of this machine, where the tokens of a file are kept (stored.py), so that neither its rows nor their
            tokens are ever in memory at once; None: everything is.

    Raises:
        DataError: no rows, unreadable rows, or nothing to learn from.
        ModelError: the base model or its tokenizer does not exist or cannot be used.
    """
    if not isinstance(rows, str):
        folder = None  # what other machines cannot make again goes to them in memory, held-out rows of a file with it
    with ExitStack() as files_of_rows:
        made = _open_rows(rows, train, folder, files_of_rows)
        held_out: Iterable[TrainingRow] | None = None
        if train.eval is not None and train.eval.file is not None:
            held_out = _open_rows(train.eval.file, train, folder, files_of_rows)
        elif train.eval is not None and train.eval.fraction is not None:
            bound = held_out_bound(made, fraction=train.eval.fraction, seed=train.seed)
            made, held_out = (_Side(made, train.seed, bound, is_held_out) for is_held_out in (False, True))
        files = build_tokenizer(train, made)
        tokenized = _tokenized(made, files, train, folder, "trained")
        evaluation = None if held_out is None else _tokenized(held_out, files, train, folder, "held-out")
    if tokenized.num_truncated:
        logger.warning(
            "%d of %d rows are longer than train.max_length %d and were cut; %d of them lost their whole answer",
            tokenized.num_truncated, len(tokenized), train.max_length, tokenized.num_without_target,
        )  # fmt: skip
    return Dataset(tokenized, files, count_steps(len(tokenized), train), evaluation)


def prepare_again(train: TrainSpec, source: str, dataset: Dataset, *, folder: Path) -> None:
    """Make the token files of a dataset on this machine too, where another machine made it and they are missing.

    Ranks of one machine may call it together: the first makes them, the others wait.

    Raises:
        DataError: other tokens came out here: the file, or the tokenizer's library, is another one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        if all(Path(one.folder).is_dir() for one in _stored(dataset)):
            return
        made = prepare_dataset(train, source, folder=folder)
    if (made.rows.digest, made.tokenizer_files) != (dataset.rows.digest, dataset.tokenizer_files):
        raise DataError(
            f"The tokens of {source} made on this machine (sha256 {made.rows.digest[:12]}) are not those of the first "
            f"machine ({dataset.rows.digest[:12]}), so they would not train on the same rows. Give all machines the "
            "same software, and leave the file as it is while a run reads it."
        )


def count_steps(num_rows: int, train: TrainSpec) -> int:
    """Optimizer updates of a whole training."""
    return total_steps(
        num_rows, global_batch_size=train.global_batch_size, epochs=train.epochs, max_steps=train.max_steps
    )  # fmt: skip


@dataclass(frozen=True)
class _Side:
    """The rows on one side of the evaluation split, read anew each time they are gone through."""

    rows: Iterable[TrainingRow]
    seed: int
    bound: float
    is_held_out: bool

    def __iter__(self) -> Iterator[TrainingRow]:
        return (row for row in self.rows if is_held_out(row, seed=self.seed, bound=self.bound) == self.is_held_out)


def _open_rows(
    rows: Sequence[TrainingRow] | str, train: TrainSpec, folder: Path | None, until: ExitStack
) -> Iterable[TrainingRow]:
    if not isinstance(rows, str):
        return rows
    if folder is None:
        return load_training_rows(rows, train)
    folder.mkdir(parents=True, exist_ok=True)
    return RowFile(until.enter_context(local_file(rows, folder)), rows, train)


def _tokenized(
    rows: Iterable[TrainingRow], files: Mapping[str, bytes], train: TrainSpec, folder: Path | None, name: str
) -> TrainingData:
    tokenizer = load_tokenizer(files)
    if folder is None or not isinstance(rows.rows if isinstance(rows, _Side) else rows, RowFile):
        return prepare_rows(rows, tokenizer, files, train)

    key = _key(train, files)

    def keep(encoded: Iterable[EncodedRow], place: int) -> StoredRows:
        there = folder / f"{name}-{place}-{key}"
        return open_stored(there) or store_rows(encoded, there, max_length=train.max_length)

    flat = FlatFile(folder)
    try:
        return prepare_rows(rows, tokenizer, files, train, keep=keep, flatten=flat)
    finally:
        flat.close()


def _key(train: TrainSpec, files: Mapping[str, bytes]) -> str:
    """Of what makes a file's rows tokens: the recipe with its templates and lengths, the tokenizer."""
    digest = hashlib.sha256(json.dumps(train.model_dump(mode="json"), sort_keys=True).encode())
    for name, data in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def _stored(dataset: Dataset) -> list[StoredRows]:
    sides = [side for side in (dataset.rows, dataset.evaluation) if side is not None]
    every = [one for side in sides for one in (side.variants if isinstance(side, MixedRows) else (side,))]
    return [one for one in every if isinstance(one, StoredRows)]


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
