"""Two runs are the same only if every byte of rows, losses and weights says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from alpaca_jobs.data.rows import Row, render_rows
from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.node.generate_stage import ROWS_OBJECT
from cluster.runs.run_facts import compare_runs, read_run_facts

ROWS = [Row("Name a colour.", "", "Red.", 1, 0), Row("Name a fish.", "", "Cod.", 1, 1)]
WEIGHTS = bytes(range(256)) * 8


def commit(store: Store, ref: CommitRef, name: str, data: bytes, meta: dict[str, object]) -> None:
    writer = CommitWriter(store, LAYOUT, ref)
    writer.put(name, data)
    writer.publish(meta=meta)


def losses(first: int, values: Sequence[float]) -> dict[str, object]:
    return {"losses": {"first_step": first, "hex": [value.hex() for value in values]}}


def make_run(folder: Path, *, weights: bytes = WEIGHTS, rows: Sequence[Row] = ROWS, last_loss: float = 1.0) -> Store:
    """One attempt that made two steps of training from two rows."""
    store = Store.open(str(folder))
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    commit(store, CommitRef("generate", 1, 1), ROWS_OBJECT, render_rows(rows), {})
    commit(store, CommitRef("train", 1, 1), "shard", b"a", losses(1, [2.0]))
    commit(store, CommitRef("train", 2, 1), "shard", b"b", losses(2, [last_loss]))
    commit(store, CommitRef("export", 0, 1), "model.safetensors", weights, {})
    return store


@pytest.fixture
def calm(tmp_path: Path) -> Store:
    return make_run(tmp_path / "calm")


def test_two_equal_runs_are_bit_identical(calm: Store, tmp_path: Path) -> None:
    found = compare_runs(read_run_facts(calm), read_run_facts(make_run(tmp_path / "other")))
    assert found.bit_identical
    assert (found.rows_lost, found.rows_duplicated, found.corrupt_resumes) == (0, 0, 0)


@pytest.mark.parametrize("bit", [0, 7, 8 * 1000 + 3, 8 * len(WEIGHTS) - 1])
def test_one_flipped_bit_of_the_stored_weights_is_found(calm: Store, tmp_path: Path, bit: int) -> None:
    other = make_run(tmp_path / "other")
    path = tmp_path / "other" / LAYOUT.commit_prefix(CommitRef("export", 0, 1)) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)
    found = compare_runs(read_run_facts(calm), read_run_facts(other))
    assert not found.bit_identical


def test_one_flipped_bit_of_a_loss_is_found_and_is_a_corrupt_resume(calm: Store, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", last_loss=1.0 + 2.0**-52)
    found = compare_runs(read_run_facts(calm), read_run_facts(other))
    assert not found.bit_identical
    assert found.corrupt_resumes == 1
    assert found.largest_loss_difference == 2.0**-52


def test_a_loss_within_the_stated_tolerance_is_no_corrupt_resume(calm: Store, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", last_loss=1.0 + 1e-7)
    assert compare_runs(read_run_facts(calm), read_run_facts(other), tolerance=1e-4).corrupt_resumes == 0


def test_lost_and_doubled_rows_are_counted(calm: Store, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", rows=[ROWS[0], ROWS[0]])
    found = compare_runs(read_run_facts(calm), read_run_facts(other))
    assert (found.rows_lost, found.rows_duplicated, found.bit_identical) == (1, 1, False)


def test_commits_that_do_not_count_are_not_results(calm: Store, tmp_path: Path) -> None:
    """A second attempt went on from step 1; what the first wrote after that is no result, but is looked at."""
    other = make_run(tmp_path / "other", last_loss=9.0)
    log = AttemptLog(other, LAYOUT)
    log.claim(2, {})
    log.put_base(2, CommitRef("train", 1, 1))
    commit(other, CommitRef("train", 2, 2), "shard", b"b", losses(2, [1.0]))
    commit(other, CommitRef("export", 0, 2), "model.safetensors", WEIGHTS, {})
    found = compare_runs(read_run_facts(calm), read_run_facts(other))
    assert found.bit_identical
    assert found.corrupt_resumes == 1
