"""Reads files of JSON records (a list, or one object per line) from a path or URI, and says where each record stood."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_jobs.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file.

    Attributes:
        where: file and line (JSON lines) or item (a list), both from 1, for error texts.
        fields: the object itself.
    """

    where: str
    fields: Mapping[str, Any]

    def text(self, key: str, *, may_be_empty: bool = False) -> str:
        """Return the string under `key`.

        Raises:
            DataError: it is missing, not a string, or empty where it must not be.
        """
        if key not in self.fields:
            have = ", ".join(sorted(self.fields)) or "none"
            raise DataError(f"{self.where} has no {key!r}; its fields are: {have}. Add {key!r}, a string.")
        value = self.fields[key]
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {key!r} is {_short(value)}, but a string is wanted. Put it in quotes.")
        if not may_be_empty and not value.strip():
            raise DataError(
                f"{self.where}: {key!r} is empty, but there must be some text. Fill it in or remove the record."
            )
        return value


def load_records(source: str) -> tuple[Record, ...]:
    """Read every record of the file at a path or fsspec URI.

    Raises:
        DataError: nothing is there, it is not UTF-8, not JSON, holds something else than objects, or holds none.
        CheckpointError: the store behind a URI could not be read.
    """
    return parse_records(read_text(source), source)


def parse_records(text: str, source: str) -> tuple[Record, ...]:
    """Return every record of a text: a JSON list of objects, or JSON lines (blank lines are skipped).

    Raises:
        DataError: as for `load_records`.
    """
    if not text.strip():
        raise DataError(f"{source} is empty. It should hold JSON: one object per line, or a list of objects.")
    return _parse_list(text, source) if text.lstrip().startswith("[") else _parse_lines(text, source)


def read_bytes(source: str) -> bytes:
    """Return a file's bytes, from a path or an fsspec URI.

    Raises:
        DataError: nothing is there, or it cannot be read.
        CheckpointError: the store behind a URI could not be read.
    """
    return _read_uri(source) if "://" in source else _read_path(source)


def not_utf8(source: str, place: int, byte: int) -> DataError:
    """What to say where a byte of a file is no UTF-8."""
    return DataError(
        f"{source} is not UTF-8 text: byte {place} is 0x{byte:02x}. It should be JSON in UTF-8; "
        f"is it compressed, or saved in another encoding?"
    )


def read_text(source: str) -> str:
    """Return a file's text. Raises as `read_bytes`, and DataError where it is not UTF-8."""
    data = read_bytes(source)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise not_utf8(source, exc.start, data[exc.start]) from exc


def _read_path(source: str) -> bytes:
    path = Path(source).expanduser()
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise is_missing(source, path) from exc
    except OSError as exc:
        raise DataError(f"{source} cannot be read: {exc.strerror}. A readable JSON file is wanted.") from exc


def _read_uri(source: str) -> bytes:
    from checkpoints.errors import ObjectMissing
    from checkpoints.store import Store

    check_address(source)
    folder, _, name = source.rpartition("/")
    try:
        return Store.open(folder).get(name)
    except ObjectMissing as exc:
        raise is_missing(source) from exc


def check_address(source: str) -> None:
    """Turn down what is an address of the web: nothing is fetched from there.

    Raises:
        DataError: it is one.
    """
    if source.startswith(("http://", "https://")):
        raise DataError(
            f"{source} is on the web, but a file or an s3://, gs:// or az:// address is wanted. Fetch it: curl -LO URL"
        )


def is_missing(source: str, path: Path | None = None) -> DataError:
    """That nothing is there, in words: at a path of this machine, or at an address."""
    if path is None:
        return DataError(f"{source} does not exist. Check the address.")
    if path.is_dir():
        return DataError(f"{source} is a folder, but a file is wanted. Name one in it.")
    looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
    return DataError(f"{source} does not exist{looked}. Check the path.")


def _parse_lines(text: str, source: str) -> tuple[Record, ...]:
    records = []
    # Not splitlines(): JSON strings may hold U+2028 and the like unescaped, which it would take for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        records.append(parse_line(line, f"{source} line {number}"))
    return tuple(records)


def parse_line(line: str, where: str) -> Record:
    """The record of one line of JSON lines. Raises DataError: no JSON, or something else than an object."""
    try:
        value = json.loads(line)
    except ValueError as exc:
        problem = exc.msg if isinstance(exc, json.JSONDecodeError) else str(exc)
        raise DataError(
            f"{where} is not JSON ({problem}): {_short(line)}. Each line should be one JSON object, "
            "or the whole file one JSON list of objects."
        ) from exc
    return to_record(where, whole_characters(value) if may_halve(line) else value)


def _parse_list(text: str, source: str) -> tuple[Record, ...]:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as exc:
        raise DataError(
            f"{source} line {exc.lineno} is not JSON ({exc.msg}, column {exc.colno}). "
            "The file starts with [, so it should be one JSON list of objects."
        ) from exc
    if not values:
        raise DataError(f"{source} is an empty list. It should hold at least one object.")
    if may_halve(text):
        values = whole_characters(values)
    return tuple(to_record(f"{source} item {number}", value) for number, value in enumerate(values, start=1))


def may_halve(text: str, begin: int = 0, end: int | None = None) -> bool:
    """Whether a piece of JSON can hold half a character: a lone surrogate, which only an escape can write."""
    return text.find("\\ud", begin, end) >= 0 or text.find("\\uD", begin, end) >= 0


def whole_characters(value: Any) -> Any:
    """A JSON value with a ? for each lone surrogate.

    Scraped chats hold them, where a browser cut a text within an emoji, and so do teachers' answers. JSON allows that;
    tokenizers and files do not.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [whole_characters(one) for one in value]
    if isinstance(value, dict):
        return {whole_characters(name): whole_characters(one) for name, one in value.items()}
    return value


def to_record(where: str, value: Any) -> Record:
    """A record of a JSON value. Raises DataError: it is no object."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {_short(value)}, but a JSON object ({{...}}) is wanted. Correct or remove it.")
    return Record(where, value)


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
