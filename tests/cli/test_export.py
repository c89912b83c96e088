"""A model leaves its store whole and verified, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.lineage_file import read_lineage
from alpaca_jobs.data.rows import Row, iter_rows, render_rows
from alpaca_jobs.errors import DataError
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints import reader
from checkpoints.attempts import AttemptLog
from checkpoints.errors import Damaged
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cli import export, review_view
from cli.exits import Refused
from cli.finding import FoundRun
from cli.rows_file import write_run_rows
from cluster.node.inputs import freeze_inputs
from cluster.runs.home import Home

WEIGHTS = bytes(range(256)) * 400
EXPORTED = CommitRef("export", 0, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run's store with one exported model of two files."""
    store = Store.open(f"file://{tmp_path}/store").child("demo-x3fkd")
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": {}})
    log.put_base(1, None)
    writer = CommitWriter(store, LAYOUT, EXPORTED)
    writer.put("model.safetensors", WEIGHTS)
    writer.put("config.json", b"{}")
    writer.publish(meta={})
    return store


def test_files_are_copied_byte_for_byte(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "COPY_BYTES", 1000)  # many pieces, the last one short
    files = export.copy_model(store, "demo-x3fkd", tmp_path / "model")
    assert files == {"model.safetensors": len(WEIGHTS), "config.json": 2}
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / "model.partial").exists()


def test_an_empty_folder_may_be_there_and_old_remains_are_cleared(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / "stale.bin").write_bytes(b"old")
    export.copy_model(store, "demo-x3fkd", tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_cannot_be_is_refused_in_words(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"file/model cannot be written \(Not a directory\)\. Name another folder: --to"):
        export.copy_model(store, "demo-x3fkd", tmp_path / "file" / "model")


def test_rows_are_had_from_a_run_at_any_time_with_their_lineage(tmp_path: Path) -> None:
    job = JobSpec.model_validate(
        {"name": "rows", "train": {"model": "tiny-llama"}, "compute": {"workers": 1}, "data": {"teacher": "offline"}}
    )
    store = Store.open(f"file://{tmp_path}/store").child("rows-x3fkd")
    store.put_once("job.json", {"job": job.model_dump(mode="json", by_alias=True)})
    freeze_inputs(job, store)
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": {}})
    log.put_base(1, None)
    with pytest.raises(Refused, match="no rows yet"):
        write_run_rows(tmp_path / "early.jsonl", store)
    for part in (1, 2):
        writer = CommitWriter(store, LAYOUT, CommitRef("generate", part, 1))
        writer.put("rows.jsonl", render_rows([Row(f"Say {part}.", "", str(part), part, 0)]))
        writer.publish(meta={})
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert write_run_rows(tmp_path / name, store) == 2
        found = tuple(iter_rows(load_table(str(tmp_path / name))))
        assert [(row.instruction, row.output) for row in found] == [("Say 1.", "1"), ("Say 2.", "2")]
    assert (read_lineage(tmp_path / "rows.parquet") or {})["teacher"] == "the offline demo teacher"
    with pytest.raises(DataError, match="exists already"):
        write_run_rows(tmp_path / "rows.json", store)


def test_a_review_is_five_lines_and_a_card_that_a_browser_opens(tmp_path: Path) -> None:
    """From a store that no browser reaches the card is copied; memory:// stands for any such store."""
    memory = Store.open(f"memory://{tmp_path.name}")
    home = Home(tmp_path / "home")
    for root in (memory, Store.open(f"{tmp_path}/my store")):
        store = root.child("rows-x3fkd")
        log = AttemptLog(store, LAYOUT)
        log.claim(1, {"placement": {}})
        log.put_base(1, None)
        writer = CommitWriter(store, LAYOUT, CommitRef("generate", 1, 1))
        writer.put("rows.jsonl", render_rows([Row("Write a poem.", "", "A poem.", 1, 0), Row("Name it.", "x", "y")]))
        writer.publish(meta={"drops": {"similar": 3, "too_short": 1}})
        store.put("reports/data-card.html", b"<html>card</html>")
        shown = dict(review_view.review_grid(FoundRun(root, "rows-x3fkd", home)).rows)
        assert shown["rows"] == "2, 50.0 % of them with an input"
        assert shown["median words"] == "2.5 of an instruction, 1.5 of an output"
        assert shown["dropped"] == "similar 3, too_short 1"
        assert "write 1" in shown["verbs"]
        assert Path(shown["data card"]).read_bytes() == b"<html>card</html>"


def test_a_flipped_bit_stops_the_copy_and_leaves_no_model(store: Store, tmp_path: Path) -> None:
    key = LAYOUT.commit_prefix(EXPORTED) + "model.safetensors"
    store.put(key, WEIGHTS[:500] + bytes([WEIGHTS[500] ^ 1]) + WEIGHTS[501:])
    with pytest.raises(Damaged):
        export.copy_model(store, "demo-x3fkd", tmp_path / "model")
    assert list(tmp_path.glob("model*")) == [], "half a copy would only take room"
