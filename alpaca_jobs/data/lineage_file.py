"""Lineage beside the rows that it is about, so that it goes where they go: `rows.jsonl` and `rows.jsonl.lineage.json`.

    put_lineage("rows.jsonl", lineage_of(data, seeds))
    read_lineage("rows.jsonl")                      # {"recipe": ..., "teacher": ..., "terms": ...} or None

Whatever makes a file of rows from another one hands the lineage on, with a line about what it did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from alpaca_jobs.data.record_files import read_bytes
from alpaca_jobs.errors import DataError

SUFFIX = ".lineage.json"
STEPS = "made of it"
"""Name of the line that tells what was done to the rows since they were written."""


def put_lineage(rows_file: str | Path, lineage: Mapping[str, str]) -> Path:
    """Write the lineage of a local file of rows beside it, over an older one; returns where."""
    path = Path(f"{rows_file}{SUFFIX}")
    path.write_text(json.dumps({"lineage": dict(lineage)}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_lineage(rows_file: str | Path) -> dict[str, str] | None:
    """Return the lineage beside a file of rows, at a path or URI; None if there is none.

    Raises:
        DataError: there is a file of that name, but it is not what `put_lineage` writes.
    """
    source = f"{rows_file}{SUFFIX}"
    if "://" not in source and not Path(source).expanduser().is_file():
        return None
    try:
        data = read_bytes(source)
    except DataError:
        return None
    return parse_lineage(data, source)


def parse_lineage(data: bytes, source: str) -> dict[str, str]:
    """Return what `put_lineage` wrote.

    Raises:
        DataError: it is something else.
    """
    try:
        lineage = json.loads(data)["lineage"]
        return {str(name): str(words) for name, words in lineage.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(
            f'{source} is no lineage of rows: an object with the names and sentences under "lineage" is wanted. '
            "Remove it, or write it anew."
        ) from exc


def with_step(lineage: Mapping[str, str], words: str) -> dict[str, str]:
    """Return a lineage with one more line about what was done to the rows."""
    before = lineage.get(STEPS)
    return {**lineage, STEPS: f"{before}; {words}" if before else words}


def hand_on(source: str | Path, target: str | Path, words: str, more: Mapping[str, str] | None = None) -> None:
    """Give a file of rows that was made from another one its lineage; none where nothing is known about that.

    Args:
        words: what was done.
        more: what is known about the new rows in any case, such as who translated them.
    """
    found = read_lineage(source)
    if found is None and not more:
        return
    origin = {"rows": str(source).rpartition("/")[2]} if found is None else found
    put_lineage(target, with_step({**origin, **(more or {})}, words))
