"""The model that a training command wrote, checked and committed as the run's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alpaca_jobs.errors import CommandError
from alpaca_jobs.training.model_card import DATA_CARD, render_model_card
from alpaca_jobs.training.weights import stored_tensors, weights_digest
from checkpoints.keys import CommitRef
from checkpoints.writer import CommitWriter
from cluster.node.attempt_context import AttemptContext
from cluster.node.cost_so_far import cost_words
from cluster.node.train_worker import card_facts, put_file

CARD = "README.md"


def export_folder(ctx: AttemptContext, folder: Path, *, num_rows: int, step: int) -> str:
    """Commit what lies at the top of `folder` as the run's model; returns the weights' digest.

    Folders below it are the command's checkpoints and logs, and stay behind. A card of the command's own is replaced by
    the run's, which says where base and rows come from.

    Raises:
        CommandError: no configuration, no weights in safetensors, adapters alone, or weights that are not all there.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    _check(files, folder)
    _check_whole(files, folder)
    digest = weights_digest(folder)
    known = card_facts(ctx.job, ctx.run_id, ctx.store, num_rows=num_rows, cost=cost_words(ctx))
    facts = replace(known, step=step, weights_digest=digest)
    ctx.fence.check()  # before a byte is stored; the writer asks again before the manifest
    writer = CommitWriter(ctx.store, ctx.layout, CommitRef("export", 0, ctx.attempt), fence=ctx.fence)
    for name, path in files.items():
        if name not in (CARD, DATA_CARD):
            put_file(writer, name, path)
    if facts.data_card is not None:
        writer.put(DATA_CARD, facts.data_card)
    writer.put(CARD, render_model_card(ctx.job.train, facts).encode())
    writer.publish(meta={"weights_digest": digest, "step": step})
    return digest


def _check(files: Mapping[str, Path], folder: Path) -> None:
    weights = [name for name in files if name.endswith(".safetensors")]
    if "config.json" in files and any(not name.startswith("adapter_") for name in weights):
        return
    found = ", ".join([*files, *(f"{path.name}/" for path in sorted(folder.iterdir()) if path.is_dir())]) or "nothing"
    if "adapter_config.json" in files:
        remedy = "These are adapters: merge them into the base (model.merge_and_unload()) and save that"
    else:
        remedy = "End the command with trainer.save_model(os.environ['ALPACA_JOBS_OUTPUT']), the tokenizer as well"
    raise CommandError(
        f"The training command wrote no model that transformers loads: $ALPACA_JOBS_OUTPUT has to hold config.json and "
        f"weights in safetensors at its top, and it holds {found}. {remedy}, then resume the run."
    )


def _check_whole(files: Mapping[str, Path], folder: Path) -> None:
    """Refuse what was half written: a configuration that is none, an index of tensors that are not there."""
    if not isinstance(_read(files["config.json"]), dict):
        raise _half("its config.json holds no JSON object")
    for name, path in files.items():
        if not name.endswith(".safetensors.index.json"):
            continue
        body = _read(path)
        places = body.get("weight_map") if isinstance(body, dict) else None
        if not isinstance(places, dict):
            raise _half(f"its {name} holds no weight_map")
        if gone := sorted({str(file) for file in places.values()} - files.keys()):
            raise _half(f"its {name} names {len(gone)} files that are not there, {gone[0]} among them")
        here = {(tensor.name, tensor.path.name) for tensor in stored_tensors(folder)}
        if lacking := sorted({(str(tensor), str(file)) for tensor, file in places.items()} - here):
            tensor, file = lacking[0]
            raise _half(f"its {name} names {len(lacking)} tensors that are not where it says, {tensor} in {file} first")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _half(what: str) -> CommandError:
    return CommandError(
        f"The training command ended well, but the model in $ALPACA_JOBS_OUTPUT is not whole: {what}. Let it end with "
        "another status than 0 where writing the model failed, then resume the run."
    )
