"""Records of a file one after the other, in bounded memory: JSON lines, a JSON list, Parquet, lines of text.

The same records as `files.load_table` and `record_files.load_records` give at once, and the same words where the file
is not what it should be.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from alpaca_jobs.data.files import PARQUET, from_columns
from alpaca_jobs.data.record_files import (
    Record,
    check_address,
    is_missing,
    may_halve,
    not_utf8,
    parse_line,
    to_record,
    whole_characters,
)
from alpaca_jobs.errors import DataError

_BLOCK = 2**20  # bytes read at once
_BATCH_ROWS = 256  # of Parquet; a row group's columns are decoded piece by piece
_BOM = codecs.BOM_UTF8


@contextmanager
def local_file(source: str, folder: Path) -> Iterator[Path]:
    """The file at a path or fsspec URI as a file of this machine: itself, or a copy in `folder` that goes at the end.

    Raises:
        DataError: nothing is there.
        CheckpointError: the store behind a URI could not be read.
    """
    if "://" not in source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise is_missing(source, path)
        yield path
        return
    from checkpoints.store import Store

    check_address(source)
    parent, _, name = source.rpartition("/")
    store = Store.open(parent)
    size = store.size(name)
    if size is None:
        raise is_missing(source)
    copy = folder / f"source-{name}"
    try:
        with copy.open("wb") as file:
            for begin in range(0, size, 8 * _BLOCK):
                file.write(store.get_range(name, begin, 8 * _BLOCK))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def stream_table(path: Path, source: str) -> Iterator[Record]:
    """Records of a local file; names ending in .parquet are Parquet, all others JSON.

    Args:
        source: what the file is called in error texts, and whose name says the format.

    Raises:
        DataError: not what its name says, no records, or something else than objects.
    """
    if source.endswith(PARQUET):
        yield from _parquet(path, source)
        return
    with path.open("rb") as file:
        first = _first_character(file)
        if first == b"":
            raise DataError(f"{source} is empty. It should hold JSON: one object per line, or a list of objects.")
        yield from _list(file, source) if first == b"[" else _lines(file, source)


def stream_text(path: Path, source: str) -> Iterator[str]:
    """Lines of a text file without their line ends; after a last line end comes an empty one, as `split` has it."""
    with path.open("rb") as file:
        has_ended = True
        for line, _ in _decoded_lines(file, source):
            has_ended = line.endswith("\n")
            yield line.removesuffix("\n")
        if has_ended:
            yield ""


def _first_character(file: BinaryIO) -> bytes:
    """The first byte that is no white space, the mark of UTF-8 aside; the file is at its beginning afterwards."""
    found = b""
    block = file.read(_BLOCK).removeprefix(_BOM)
    while block and not found:
        found = block.lstrip()[:1]
        block = file.read(_BLOCK)
    file.seek(0)
    return found


def _decoded_lines(file: BinaryIO, source: str) -> Iterator[tuple[str, int]]:
    """Lines as text with their line ends, and their numbers from 1. Only line feeds end lines."""
    begin = 0
    for number, raw in enumerate(file, start=1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        try:
            yield line.decode("utf-8"), number
        except UnicodeDecodeError as exc:
            place = begin + len(raw) - len(line) + exc.start
            raise not_utf8(source, place, line[exc.start]) from exc
        begin += len(raw)


def _lines(file: BinaryIO, source: str) -> Iterator[Record]:
    for line, number in _decoded_lines(file, source):
        if line.strip():
            yield parse_line(line.removesuffix("\n"), f"{source} line {number}")


def _parquet(path: Path, source: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(f"{source} row {number}", from_columns(row))
    except pyarrow.ArrowException as exc:
        raise DataError(f"{source} is not Parquet ({exc}). A file that pyarrow reads is wanted.") from exc
    if not number:
        raise DataError(f"{source} holds no rows. It should hold at least one.")


def _list(file: BinaryIO, source: str) -> Iterator[Record]:
    """The items of one JSON list. Text is held from the item being read on."""
    text = _Window(file, source)
    text.take_character("[")
    number = 0
    while text.skip_space() != "]":
        if number:
            text.take_character(",")
            text.skip_space()
        number += 1
        yield to_record(f"{source} item {number}", text.take_value())
    if not number:
        raise DataError(f"{source} is an empty list. It should hold at least one object.")
    text.take_character("]")
    if text.skip_space():
        raise text.wrong("Extra data")


class _Window:
    """A moving piece of a JSON text."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        self._file, self._source = file, source
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # of the first character of `_text`
        self._bytes = 0
        self._is_first, self._is_over = True, False

    def skip_space(self) -> str:
        """Go to the next character that is no white space; returns it, "" at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._read(_BLOCK):
                return ""

    def take_character(self, wanted: str) -> None:
        """Go past a character that has to come next."""
        if self.skip_space() != wanted:
            raise self.wrong(f"Expecting '{wanted}' delimiter")
        self._at += 1

    def take_value(self) -> Any:
        """Go past one JSON value. A value longer than what was read is tried again with twice as much."""
        size = _BLOCK
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as exc:
                if not self._read(size):
                    raise self.wrong(exc.msg, exc.pos) from exc
                size *= 2
                continue
            halves = may_halve(self._text, self._at, end)
            if end < len(self._text) or not self._read(size):  # a number could go on
                self._at = end
                return whole_characters(value) if halves else value

    def wrong(self, message: str, at: int | None = None) -> DataError:
        """What is wrong at a place of the text (None: where it stands), in words."""
        line, column = self._place(self._at if at is None else at)
        return DataError(
            f"{self._source} line {line} is not JSON ({message}, column {column}). "
            "The file starts with [, so it should be one JSON list of objects."
        )

    def _place(self, at: int) -> tuple[int, int]:
        breaks = self._text.count("\n", 0, at)
        return (self._line + breaks, at - self._text.rfind("\n", 0, at)) if breaks else (self._line, self._column + at)

    def _read(self, size: int) -> bool:
        """Drop what is behind and read on; False at the end of the file."""
        if self._is_over:
            return False
        self._line, self._column = self._place(self._at)
        self._text, self._at = self._text[self._at :], 0
        block = self._file.read(size)
        pending = len(self._decoder.getstate()[0])
        self._is_over = not block
        try:
            more = self._decoder.decode(block, final=self._is_over)
        except UnicodeDecodeError as exc:
            raise not_utf8(self._source, self._bytes - pending + exc.start, exc.object[exc.start]) from exc
        self._bytes += len(block)
        if self._is_first:
            more, self._is_first = more.removeprefix("\ufeff"), False
        self._text += more
        return bool(more) or not self._is_over
