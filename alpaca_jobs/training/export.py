"""Export: the model of a committed step as a folder that from_pretrained of transformers loads; one process, no GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.model import build_model
from alpaca_jobs.training.model_card import CardFacts, render_model_card
from alpaca_jobs.training.state import model_tensors
from alpaca_jobs.training.tokenizer import load_tokenizer, write_folder
from alpaca_jobs.training.weights import weights_digest
from checkpoints.keys import CommitRef

if TYPE_CHECKING:
    from checkpoints.torch_bridge import Checkpointer

MAX_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: names relative to the folder, sorted.
        weights_digest: SHA-256 over all tensors, independent of files.
        meta: of the commit the weights come from.
    """

    files: tuple[str, ...]
    weights_digest: str
    meta: Mapping[str, Any]


def export_model(
    train: TrainSpec,
    *,
    checkpointer: Checkpointer,
    ref: CommitRef,
    tokenizer_files: Mapping[str, bytes],
    facts: CardFacts,
    folder: Path,
) -> Exported:
    """Write the weights of commit `ref`, configuration, tokenizer and model card into a folder.

    Weights keep the type they were trained in (`train.dtype`). An older commit is not taken instead of a damaged one:
    it would be another model. Train again from the older one instead.

    Args:
        facts: for the card; step, loss and digest are filled in from what is exported.
        folder: made if missing; should be empty.

    Raises:
        Damaged: the commit's bytes are not what was committed.
        ModelError: the base model cannot be loaded.
        TrainingError: the folder cannot be written, or is full.
    """
    tokenizer = load_tokenizer(tokenizer_files)
    model: Any = build_model(train, tokenizer, device=torch.device("cpu"), with_weights=False)
    manifest = checkpointer.load(ref, {"model": model_tensors(model)})
    model.to(getattr(torch, train.dtype)).eval()
    model.config.use_cache = True
    _generate_as_trained(model, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    _write(model, tokenizer_files, folder)
    digest = weights_digest(folder)
    hexes = manifest.meta["losses"]["hex"]
    loss = float.fromhex(hexes[-1]) if hexes else None
    card = render_model_card(train, replace(facts, step=ref.position, loss=loss, weights_digest=digest))
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Exported(files=tuple(files), weights_digest=digest, meta=manifest.meta)


def _write(model: Any, tokenizer_files: Mapping[str, bytes], folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        write_folder(tokenizer_files, folder)
    except (OSError, SafetensorError) as exc:
        size_gib = sum(param.numel() * param.element_size() for param in model.parameters()) / 2**30
        raise TrainingError(
            f"The model cannot be written to {folder}: {exc}. It needs {size_gib:.1f} GiB there. Make room or name "
            "another folder, then resume: the checkpoints are unharmed."
        ) from exc


def _generate_as_trained(model: Any, *, eos_id: int, pad_id: int) -> None:
    """Stop at the token that ended every answer, whatever the base model's configuration says."""
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = eos_id, pad_id
    model.config.eos_token_id, model.config.pad_token_id = eos_id, pad_id
