"""Export: the model of a committed step as a folder that from_pretrained of transformers loads; one process, no GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.run_layout import EVAL_LOSS
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, merge_adapters, write_adapters
from alpaca_jobs.training.engines.protocol import kept_tensors, trained_parameters
from alpaca_jobs.training.hub import TINY_LLAMA
from alpaca_jobs.training.model import build_model, build_without_memory
from alpaca_jobs.training.model_card import DATA_CARD, CardFacts, render_model_card
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer, write_folder
from alpaca_jobs.training.weights import weights_digest
from checkpoints.best import metric_of
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
    merge: bool = False,
) -> Exported:
    """Write the weights of commit `ref`, configuration, tokenizer and model card into a folder.

    Method lora: the adapters as peft reads them (PeftModel.from_pretrained); with `merge` the whole model with the
    adapters folded in, and the adapters themselves in the folder `adapter`.

    Weights keep the type they were trained in (`train.dtype`). An older commit is not taken instead of a damaged one:
    it would be another model. Train again from the older one instead.

    Args:
        facts: for the card; step, losses and digest are filled in from what is exported.
        folder: made if missing; should be empty.

    Raises:
        Damaged: the commit's bytes are not what was committed.
        ModelError: the base model cannot be loaded.
        TrainingError: the folder cannot be written, or is full.
    """
    tokenizer = load_tokenizer(tokenizer_files)
    if train.method == "lora" and not merge:
        adapters = _empty_adapters(train, tokenizer)
        manifest = checkpointer.load(ref, {"model": adapters})
        with _disk_errors(folder, adapters.values()):
            write_adapters(adapters, train, folder)
            write_folder(tokenizer_files, folder)
    else:
        model: Any = build_model(train, tokenizer, device=torch.device("cpu"), with_weights=train.method == "lora")
        if train.method == "lora":
            add_adapters(model, train)
        tensors = kept_tensors(model, adapters_only=train.method == "lora")
        manifest = checkpointer.load(ref, {"model": tensors})
        if train.method == "lora":
            with _disk_errors(folder, tensors.values()):
                write_adapters(tensors, train, folder / "adapter")
            merge_adapters(model)
        model.to(getattr(torch, train.dtype)).eval()
        model.config.use_cache = True
        _generate_as_trained(model, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
        _write(model, tokenizer_files, folder)
    digest = weights_digest(folder)
    hexes = manifest.meta["losses"]["hex"]
    loss = float.fromhex(hexes[-1]) if hexes else None
    eval_loss = metric_of(manifest, EVAL_LOSS)
    facts = replace(facts, step=ref.position, loss=loss, weights_digest=digest, eval_loss=eval_loss)
    card = render_model_card(train, facts)
    if facts.data_card is not None:
        (folder / DATA_CARD).write_bytes(facts.data_card)
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Exported(files=tuple(files), weights_digest=digest, meta=manifest.meta)


def _empty_adapters(train: TrainSpec, tokenizer: RowTokenizer) -> dict[str, Tensor]:
    """The adapters' names and shapes, with memory for them alone."""
    model = (
        build_model(train, tokenizer, device=torch.device("cpu"))
        if train.model == TINY_LLAMA
        else build_without_memory(train, tokenizer)[0]
    )
    add_adapters(model, train)
    return {name: torch.empty(param.shape) for name, param in trained_parameters(model).items()}


def _write(model: Any, tokenizer_files: Mapping[str, bytes], folder: Path) -> None:
    with _disk_errors(folder, model.parameters()):
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        write_folder(tokenizer_files, folder)


@contextmanager
def _disk_errors(folder: Path, tensors: Iterable[Tensor]) -> Iterator[None]:
    from safetensors import SafetensorError

    size_gib = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**30
    try:
        yield
    except (OSError, SafetensorError) as exc:
        raise TrainingError(
            f"The model cannot be written to {folder}: {exc}. It needs {size_gib:.1f} GiB there. Make room or name "
            "another folder, then resume: the checkpoints are unharmed."
        ) from exc


def _generate_as_trained(model: Any, *, eos_id: int, pad_id: int) -> None:
    """Stop at the token that ended every answer, whatever the base model's configuration says."""
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = eos_id, pad_id
    model.config.eos_token_id, model.config.pad_token_id = eos_id, pad_id
