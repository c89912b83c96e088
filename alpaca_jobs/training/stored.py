"""Rows as tokens in files of this machine's disk, mapped into memory: for data that are larger than memory.

The files are arrays as `TokenizedRows` has them, in the byte order of the machine. What the operating system keeps of
them in memory it can drop at any time; held besides are the epoch's order of rows (8 bytes a row, two epochs of it).
On the disk a token takes 5 bytes and a row 32, a piece of packed documents 8 more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from alpaca_jobs.training.data import EncodedRow, Piece, check_learnable, pieces_of

_TYPES: dict[str, Any] = {
    "tokens": np.int32, "is_target": np.bool_, "offsets": np.int64, "lengths": np.int64, "target_counts": np.int64,
    "squared_lengths": np.int64, "piece_starts": np.int64,
}  # fmt: skip
_HASHED = ("tokens", "offsets", "is_target", "piece_starts")  # as TokenizedRows.digest has them
_FLUSH_TOKENS = 2**19
_BLOCK = 2**20
_FACTS = "facts.json"


@dataclass(frozen=True)
class StoredRows:
    """Implements `data.TrainingData` and `data.EpochRows` on a folder of files that `store_rows` wrote.

    It travels between processes as the folder's name; the files are opened where they are looked at.

    Attributes:
        folder: where the files lie, on every machine that trains.
    """

    folder: str
    num_rows: int
    num_truncated: int
    num_without_target: int
    digest: str
    is_packed: bool

    def __len__(self) -> int:
        return self.num_rows

    def of_epoch(self, epoch: int) -> StoredRows:
        """The same rows in every epoch."""
        return self

    def pieces(self, row: int) -> list[Piece]:
        """The tokens of a row, piece by piece."""
        return pieces_of(row, self._map("tokens"), self._map("is_target"), self._offsets, self._piece_starts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row, (num_rows,) int64."""
        return self._map("lengths")

    @property
    def target_counts(self) -> npt.NDArray[np.int64]:
        """Target tokens of every row, (num_rows,) int64."""
        return self._map("target_counts")

    @property
    def squared_lengths(self) -> npt.NDArray[np.int64]:
        """Sum over its pieces of the squared number of tokens, (num_rows,) int64."""
        return self._map("squared_lengths")

    @property
    def _offsets(self) -> npt.NDArray[np.int64]:
        return self._map("offsets")

    @property
    def _piece_starts(self) -> npt.NDArray[np.int64] | None:
        return self._map("piece_starts") if self.is_packed else None

    @cached_property
    def _open(self) -> dict[str, npt.NDArray[Any]]:
        return {}

    def _map(self, name: str) -> npt.NDArray[Any]:
        if name not in self._open:
            mapped = np.memmap(Path(self.folder) / name, dtype=_TYPES[name], mode="r")
            self._open[name] = np.asarray(mapped)
        return self._open[name]

    def __getstate__(self) -> dict[str, Any]:
        return asdict(self)


def open_stored(folder: Path) -> StoredRows | None:
    """The rows that `store_rows` wrote to a folder; None where it did not, or not to the end."""
    try:
        facts = json.loads((folder / _FACTS).read_text())
    except FileNotFoundError:
        return None
    return StoredRows(folder=str(folder), **facts)


def store_rows(rows: Iterable[EncodedRow], folder: Path, *, max_length: int) -> StoredRows:
    """Write encoded rows to files in a new folder; it has its name once all of them are there.

    Raises:
        DataError: no rows, or not one target in them.
        OSError: the disk is full.
    """
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        facts = _write(rows, partial, max_length)
        (partial / _FACTS).write_text(json.dumps(facts))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return StoredRows(folder=str(folder), **facts)


class FlatFile:
    """`packing.Flatten` on the disk: documents one after the other in a file without a name, gone when it is closed."""

    def __init__(self, folder: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as its rows are read

    def __call__(self, documents: Iterable[npt.NDArray[np.int32]]) -> tuple[npt.NDArray[np.int32], list[int]]:
        lengths = []
        for document in documents:
            self._file.write(document.tobytes())
            lengths.append(len(document))
        self._file.flush()
        return np.asarray(np.memmap(self._file, dtype=np.int32, mode="r", shape=(sum(lengths),))), lengths

    def close(self) -> None:
        """Give the disk's space back."""
        self._file.close()


def _write(rows: Iterable[EncodedRow], folder: Path, max_length: int) -> dict[str, Any]:
    files = {name: (folder / name).open("wb") for name in _TYPES}
    try:
        counts = _Writer(files)
        for row in rows:
            counts.add(row)
        counts.flush()
    finally:
        for file in files.values():
            file.close()
    check_learnable(counts.num_rows, counts.num_without_target, longest=counts.longest, max_length=max_length)
    return {
        "num_rows": counts.num_rows,
        "num_truncated": counts.num_truncated,
        "num_without_target": counts.num_without_target,
        "digest": _digest(folder, with_pieces=counts.is_packed),
        "is_packed": counts.is_packed,
    }


def _digest(folder: Path, *, with_pieces: bool) -> str:
    digest = hashlib.sha256()
    for name in _HASHED if with_pieces else _HASHED[:-1]:
        with (folder / name).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


class _Writer:
    """Appends rows to the files of their arrays, many at a time."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files
        self._rows: list[EncodedRow] = []
        self._waiting = self._num_tokens = 0
        self.num_rows = self.num_truncated = self.num_without_target = self.longest = 0
        self.is_packed = False
        self._append("offsets", [0])

    def add(self, row: EncodedRow) -> None:
        self._rows.append(row)
        self._waiting += len(row.ids)
        if self._waiting >= _FLUSH_TOKENS:
            self.flush()

    def flush(self) -> None:
        rows = self._rows
        if not rows:
            return
        lengths = np.asarray([len(row.ids) for row in rows], dtype=np.int64)
        targets = [int(row.is_target.sum()) for row in rows]
        pieces = [row.piece_lengths or (len(row.ids),) for row in rows]
        flat = np.asarray([length for row in pieces for length in row], dtype=np.int64)
        self._append("tokens", np.concatenate([row.ids for row in rows]))
        self._append("is_target", np.concatenate([row.is_target for row in rows]))
        self._append("offsets", self._num_tokens + np.cumsum(lengths))
        self._append("lengths", lengths)
        self._append("target_counts", targets)
        self._append("squared_lengths", [sum(length * length for length in row) for row in pieces])
        self.is_packed |= any(row.piece_lengths for row in rows)
        if self.is_packed:
            self._append("piece_starts", self._num_tokens + np.cumsum(flat) - flat)
        self._num_tokens += int(lengths.sum())
        self.num_rows += len(rows)
        self.num_truncated += sum(row.is_cut for row in rows)
        self.num_without_target += targets.count(0)
        self.longest = max(self.longest, int(lengths.max()))
        self._rows, self._waiting = [], 0

    def _append(self, name: str, values: Any) -> None:
        self._files[name].write(np.asarray(values, dtype=_TYPES[name]).tobytes())
