"""Another run's exported model as the base of this one: `train.model: s3://bucket/runs/zh-pretrain-x3fkd`."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from alpaca_jobs.errors import ModelError
from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store

_COPY_BYTES = 64 * 2**20


def is_run(model: str) -> bool:
    """Whether a base model's name is the URI of a run."""
    return "://" in model


def run_model_folder(uri: str) -> Path:
    """A folder with the newest model that a run exported, every byte verified; copied here once.

    It lies in ~/.cache/alpaca-jobs ($XDG_CACHE_HOME) under the digest of the run and its commit.

    Raises:
        ModelError: there is no run at the URI, or it has exported nothing.
        CheckpointError: its store cannot be read, or the bytes are not those that were committed.
    """
    ref, reader = _exported(uri)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alpaca-jobs" / "models"
    folder = cache / hashlib.sha256(f"{uri} {ref}".encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for entry in reader.manifest.objects:
        target = partial / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for start in range(0, entry.size, _COPY_BYTES):
                file.write(reader.read_range(entry.name, start, min(_COPY_BYTES, entry.size - start)))
    try:
        partial.rename(folder)
    except OSError:  # another rank on this machine was faster
        shutil.rmtree(partial)
    return folder


def exported_file(uri: str, name: str) -> bytes:
    """One file of the newest model that a run exported. Raises as `run_model_folder`."""
    _, reader = _exported(uri)
    for entry in reader.manifest.objects:
        if entry.name == name:
            return bytes(reader.read_range(name, 0, entry.size))
    raise ModelError(f"The model that {uri} exported has no {name}.")


def _exported(uri: str) -> tuple[CommitRef, CommitReader]:
    store = Store.open(uri.rstrip("/"))
    records, commits = AttemptLog(store, LAYOUT).records(), list_commits(store, LAYOUT)
    exported = [ref for ref in counting_commits(records, commits, LAYOUT) if ref.stage == "export"]
    if not exported:
        raise ModelError(
            f"{uri} is taken for a run's folder in a store, but no exported model is there. Name a run that is done "
            "(store and run id, as `alpaca-jobs runs` shows them), a folder, or a name on the Hugging Face hub."
        )
    return exported[0], CommitReader.open(store, LAYOUT, exported[0])
