"""Another run's exported model as a base: a whole model is taken, adapters alone are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_jobs.errors import ModelError
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.training.pinning import Pinned, pin_revision
from alpaca_jobs.training.run_models import exported_file, run_model_folder
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter


def _run(folder: Path, *files: str) -> str:
    """A run that has exported these files."""
    uri = f"file://{folder}"
    store = Store.open(uri)
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    writer = CommitWriter(store, LAYOUT, CommitRef("export", 0, 1))
    for name in files:
        writer.put(name, name.encode())
    writer.publish(meta={})
    return uri


def test_a_whole_model_is_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = _run(tmp_path / "run", "config.json", "model.safetensors")
    folder = run_model_folder(uri)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert run_model_folder(uri) == folder
    assert pin_revision(uri, None) == Pinned(None)


def test_adapters_alone_are_refused_at_launch_and_on_a_node(tmp_path: Path) -> None:
    uri = _run(tmp_path / "run", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")
    with pytest.raises(ModelError, match=r"exported adapters alone, .* Set export\.merge: true"):
        run_model_folder(uri)
    with pytest.raises(ModelError, match="exported adapters alone"):
        pin_revision(uri, None)
    assert exported_file(uri, "tokenizer.json") == b"tokenizer.json"


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    uri = _run(tmp_path / "run", "notes.txt")
    with pytest.raises(ModelError, match=r"holds no config\.json \(notes\.txt\)"):
        run_model_folder(uri)
