"""Rows of a run as a file here, with their lineage beside them: what `generate --out` and `export --rows` write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cli.exits import Refused, require_modules

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpaca_jobs.data.rows import Row
    from checkpoints.store import Store


def check_writable(path: Path) -> None:
    """Find out before the teacher is paid, not after.

    Raises:
        DataError: it exists, its folder does not, or its name says no format.
        MissingExtra: its format needs a library that is not here.
    """
    from alpaca_jobs.data.files import check_target

    check_target(path)
    if path.suffix == ".parquet":
        require_modules("pyarrow")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows in the format of the name: JSON lines, Parquet, or Alpaca's one list (.json); never half a file."""
    from alpaca_jobs.data.rows import render_rows
    from alpaca_jobs.data.stream_writing import write_table

    if path.suffix == ".json":
        write_table(path, [{name: getattr(row, name) for name in ("instruction", "input", "output")} for row in rows])
        return
    write_table(path, [json.loads(line) for line in render_rows(rows).splitlines()])


def write_run_rows(path: Path, store: Store) -> int:
    """Write the rows that a run has committed so far, verified, and their lineage; returns how many.

    Raises:
        Refused: it has none, or was given its rows.
        Damaged: the bytes in the store are not those that were committed.
    """
    from alpaca_jobs.data.lineage_file import put_lineage
    from alpaca_jobs.run_layout import LAYOUT
    from checkpoints.attempts import AttemptLog
    from checkpoints.lineage import counting_commits
    from checkpoints.reader import list_commits
    from cluster.job_record import read_job
    from cluster.node.review import run_lineage
    from cluster.node.stored_rows import read_rows

    job = read_job(store)
    if job.data.from_ is not None:
        raise Refused(f"{store.uri} was given its rows ({job.data.from_}); it has written none.")
    commits = counting_commits(AttemptLog(store, LAYOUT).records(), list_commits(store, LAYOUT), LAYOUT)
    rows = read_rows(store, [ref for ref in commits if ref.stage == "generate"])
    if not rows:
        raise Refused(f"{store.uri} has no rows yet: the first part of them is still to be committed.")
    write_rows(path, rows)
    put_lineage(path, run_lineage(store, job))
    return len(rows)
