"""Files of records that commands read whole, and what is asked of one to be written (stream_writing.py): Alpaca JSON
(one list), JSON lines and Parquet, by their name.

Every field of a record is carried along. An existing file is never replaced.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alpaca_jobs.data.record_files import Record, load_records, read_bytes
from alpaca_jobs.errors import DataError

PARQUET = ".parquet"
NEIGHBOURS = "most_similar_instructions"
"""The one field whose keys are data: a table has columns, so there it is a list of {instruction, score}."""
SUFFIXES = (".json", ".jsonl", ".ndjson", PARQUET)


def load_table(source: str) -> tuple[Record, ...]:
    """Read every record of a file at a path or fsspec URI; names ending in .parquet are Parquet, all others JSON.

    Raises:
        DataError: nothing there, not what its name says, or no records.
        CheckpointError: the store behind a URI could not be read.
    """
    if not source.endswith(PARQUET):
        return load_records(source)
    import pyarrow
    from pyarrow import parquet

    data = read_bytes(source)
    try:
        # Not read_table: the threads of its scan abort one process in ten that ends right after (pyarrow 26.0.1).
        with parquet.ParquetFile(io.BytesIO(data), pre_buffer=False) as file:
            rows = file.read(use_threads=False).to_pylist()
    except pyarrow.ArrowException as exc:
        raise DataError(f"{source} is not Parquet ({exc}). A file that pyarrow reads is wanted.") from exc
    if not rows:
        raise DataError(f"{source} holds no rows. It should hold at least one.")
    return tuple(Record(f"{source} row {number}", from_columns(row)) for number, row in enumerate(rows, start=1))


def check_target(target: str | Path) -> None:
    """Find out before the work, not after it, that a file cannot be written.

    Raises:
        DataError: it exists, its folder does not or cannot be written to, or its name says no format.
    """
    path = Path(target)
    if path.suffix not in SUFFIXES:
        raise DataError(f"{target}: its name says no format. Let it end in one of {', '.join(SUFFIXES)}.")
    if path.exists():
        raise DataError(f"{target} exists already and was left as it is. Name another file.")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{target} cannot be written: there is no folder {path.absolute().parent}. Make it first.")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as exc:
        raise DataError(
            f"{target} cannot be written in {path.absolute().parent} ({exc.strerror}). Name another folder."
        ) from exc


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write a file under first: it gets its own when all of it is there, and half of it never stays."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:  # a full disk, Ctrl-C
        partial.unlink(missing_ok=True)
        raise


def to_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as a table's row; `from_columns` is the way back."""
    nearest = record.get(NEIGHBOURS)
    if not isinstance(nearest, Mapping):
        return dict(record)
    return {**record, NEIGHBOURS: [{"instruction": text, "score": score} for text, score in nearest.items()]}


def from_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's row as a record: what is null was no field."""
    record = {name: value for name, value in row.items() if value is not None}
    nearest = record.get(NEIGHBOURS)
    if isinstance(nearest, list) and all(isinstance(one, dict) and "instruction" in one for one in nearest):
        record[NEIGHBOURS] = {one["instruction"]: one["score"] for one in nearest}
    return record
