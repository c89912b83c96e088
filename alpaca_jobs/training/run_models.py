"""Another run's exported model as the base of this one: `train.model: s3://bucket/runs/zh-pretrain-x3fkd`."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from alpaca_jobs.errors import ModelError
from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store


def is_run(model: str) -> bool:
    """Whether a base model's name is the URI of a run."""
    return "://" in model


def run_model_folder(uri: str) -> Path:
    """A folder with the newest model that a run exported, every byte verified; copied here once.

    It lies in ~/.cache/alpaca-jobs ($XDG_CACHE_HOME) under the digest of the run and its commit.

    Raises:
        ModelError: there is no run at the URI, or it has exported nothing, or adapters alone.
        CheckpointError: its store cannot be read, or the bytes are not those that were committed.
    """
    ref, reader = _exported(uri)
    _check_whole(uri, reader)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alpaca-jobs" / "models"
    folder = cache / hashlib.sha256(f"{uri} {ref}".encode()).hexdigest()[:16]
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    reader.copy_to(partial)
    try:
        partial.rename(folder)
    except OSError:  # another rank on this machine was faster
        shutil.rmtree(partial)
    return folder


def check_run_model(uri: str) -> None:
    """Look, without copying, whether a run has exported a whole model. Raises as `run_model_folder`."""
    _check_whole(uri, _exported(uri)[1])


def run_model_files(uri: str, names: Iterable[str]) -> tuple[dict[str, int], dict[str, bytes]]:
    """Of the newest model that a run exported, the bytes of every file, and the contents of those of `names` that are
    there. Raises as `run_model_folder`."""
    _, reader = _exported(uri)
    _check_whole(uri, reader)
    sizes = {entry.name: entry.size for entry in reader.manifest.objects}
    return sizes, {name: bytes(reader.read_range(name, 0, sizes[name])) for name in names if name in sizes}


def exported_file(uri: str, name: str) -> bytes:
    """One file of the newest model that a run exported. Raises as `run_model_folder`."""
    _, reader = _exported(uri)
    for entry in reader.manifest.objects:
        if entry.name == name:
            return bytes(reader.read_range(name, 0, entry.size))
    raise ModelError(f"The model that {uri} exported has no {name}.")


def _check_whole(uri: str, reader: CommitReader) -> None:
    names = [entry.name for entry in reader.manifest.objects]
    if "config.json" in names:
        return
    if "adapter_config.json" in names:
        raise ModelError(
            f"train.model is {uri}, but that run exported adapters alone, which are no model without their base. Set "
            "export.merge: true in its job and train it again, or merge them by hand (peft's merge_and_unload) and "
            "name that folder."
        )
    raise ModelError(
        f"train.model is {uri}, but what that run exported holds no config.json ({', '.join(names)}), so it is not a "
        "model that from_pretrained can load. Name a run that exported a whole model."
    )


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
