"""Writes records to a new file as they come, in bounded memory: JSON lines, one JSON list, Parquet.

Parquet has one schema for all rows, which is known only at the end. So rows are written in groups by the schema of
those seen so far; the first group that does not fit it has the groups before it written again, one by one, by the
schema that fits both. Rows of one kind are written once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from alpaca_jobs.data.files import PARQUET, check_target, to_columns, whole_file
from alpaca_jobs.errors import DataError

_GROUP_ROWS = 16_384  # of Parquet, held until they are written
Records = Iterable[Mapping[str, Any]]


def write_table(target: str | Path, records: Records) -> int:
    """Write records to a new local file in the format that its name says; returns how many there were.

    Raises:
        DataError: see `check_target`; or a value that the format cannot hold.
    """
    check_target(target)
    path = Path(target)
    write: Callable[[Path, Records], int] = _lines
    if path.suffix in (".json", PARQUET):
        write = _list if path.suffix == ".json" else _parquet
    read = _Reading(records)
    try:
        with whole_file(path) as partial:
            return write(partial, read)
    except (TypeError, ValueError) as exc:  # pyarrow's ArrowInvalid and ArrowTypeError are such, too
        if read.has_failed:
            raise
        raise DataError(
            f"{target}: the records hold something that it cannot hold: {exc}. Try another format."
        ) from exc


class _Reading:
    """Records, and whether it was having the next one that failed: that is not the file's fault."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.has_failed = False

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        try:
            yield from self._records
        except Exception:
            self.has_failed = True
            raise


def _lines(path: Path, records: Records) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _list(path: Path, records: Records) -> int:
    """The very bytes of json.dumps with an indent of 2; within a string no line is ever broken."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for record in records:
            file.write(",\n  " if count else "[\n  ")
            file.write(json.dumps(record, indent=2, ensure_ascii=False).replace("\n", "\n  "))
            count += 1
        file.write("\n]\n" if count else "[]\n")
    return count


def _parquet(path: Path, records: Records) -> int:
    import pyarrow
    from pyarrow import parquet

    rows = iter(records)
    first = list(islice(rows, _GROUP_ROWS))
    group, count = _table(first), len(first)
    schema = group.schema
    writer = parquet.ParquetWriter(path, schema)
    try:
        writer.write_table(group)
        while following := list(islice(rows, _GROUP_ROWS)):
            group = _table(following)
            fitting = pyarrow.unify_schemas([schema, group.schema], promote_options="permissive")
            if fitting != schema:
                writer.close()
                writer = _written_again(path, fitting)
                schema = fitting
            if group.schema != schema:
                group = pyarrow.Table.from_pylist(group.to_pylist(), schema=schema)
            writer.write_table(group)
            count += len(following)
    finally:
        writer.close()
    return count


def _table(records: Records) -> Any:
    """A table of a few records; a column for every name that one of them has."""
    import pyarrow

    rows = [to_columns(record) for record in records]
    names = dict.fromkeys(name for row in rows for name in row)  # from_pylist looks at the first row only
    return pyarrow.table({name: [row.get(name) for row in rows] for name in names})


def _written_again(path: Path, schema: Any) -> Any:
    """Write the groups of a file again by another schema; returns the open writer, for more groups."""
    import pyarrow
    from pyarrow import parquet

    before = path.with_name(f"{path.name}.before")
    path.replace(before)
    writer = parquet.ParquetWriter(path, schema)
    try:
        with parquet.ParquetFile(before, pre_buffer=False) as file:
            for number in range(file.num_row_groups):
                rows = file.read_row_group(number).to_pylist()
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    except BaseException:
        writer.close()
        raise
    finally:
        before.unlink()
    return writer
