"""The rows of a run as its parts hold them, verified, without what the stage needs to go on."""

from __future__ import annotations

from collections.abc import Sequence

from alpaca_jobs.data.rows import Row, parse_rows
from alpaca_jobs.run_layout import LAYOUT
from checkpoints.keys import CommitRef
from checkpoints.reader import CommitReader
from checkpoints.store import Store

ROWS_OBJECT = "rows.jsonl"


def read_rows(store: Store, parts: Sequence[CommitRef]) -> list[Row]:
    """Return the rows of the parts that count (newest first, as lineage gives them), every byte verified.

    Raises:
        Damaged: a part is damaged.
    """
    rows: list[Row] = []
    for ref in reversed(parts):
        data = CommitReader.open(store, LAYOUT, ref).read(ROWS_OBJECT)
        rows += parse_rows(data, f"{store.uri}/{LAYOUT.commit_prefix(ref)}{ROWS_OBJECT}")
    return rows
