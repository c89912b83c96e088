"""From a job to a model that an engine can take: built, adapted, tried out, and the way its base weights come in.

A model is tried out (layout of rows, chunked loss) before it is spread. Engine fsdp takes a pretrained model without
memory: it is tried out on a small one of the same architecture, sharded, and then each rank reads its own part of the
weights (base_weights.py). Everything else is loaded whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, reset_adapters
from alpaca_jobs.training.attention import use_rows_attention
from alpaca_jobs.training.base_weights import give_memory, open_base
from alpaca_jobs.training.collate import Layout, choose_layout, choose_loss_head
from alpaca_jobs.training.engines.choice import choose_engine
from alpaca_jobs.training.flash_check import keep_flash
from alpaca_jobs.training.hub import TINY_LLAMA, foreign_model_errors, resolve_model
from alpaca_jobs.training.loss import LossHead, attach_loss_head
from alpaca_jobs.training.model import build_model, build_without_memory
from alpaca_jobs.training.tokenizer import RowTokenizer
from alpaca_jobs.training.weights import weights_digest


@dataclass(frozen=True)
class Made:
    """A model before it is spread.

    Attributes:
        fill: gives a model its memory and weights once it is sharded; None: it has them.
    """

    model: nn.Module
    layout: Layout
    loss_head: LossHead | None
    fill: Callable[[nn.Module], None] | None


def make_model(
    train: TrainSpec, tokenizer: RowTokenizer, *, device: torch.device, world_size: int, with_weights: bool = True
) -> Made:
    """Build the job's model, with adapters where it has some, and find out how rows and losses go through it.

    Raises:
        ModelError: the base model cannot be loaded or adapted.
    """
    if choose_engine(train, world_size=world_size)[0] == "fsdp" and train.model != TINY_LLAMA:
        made = _make_without_memory(train, tokenizer, device=device, with_weights=with_weights)
        if made is not None:
            return made
    model = build_model(train, tokenizer, device=device, with_weights=with_weights)
    if train.method == "lora":
        add_adapters(model, train)
        reset_adapters(model, train.seed)
    layout, head = _try_out(model, train, pad_id=tokenizer.pad_id, device=device)
    _store_frozen_small(model, train)
    return Made(model, layout, head, None)


def name_base(train: TrainSpec) -> dict[str, str]:
    """Which base model this is: its name, and what tells its weights from others'.

    That is the digest of a folder's weights; for a model of the hub's cache, the revision, which is a digest already.
    """
    if train.model == TINY_LLAMA:
        return {"model": train.model, "weights": f"made from seed {train.seed}"}
    folder = _folder(train)
    if folder is None:
        return {"model": train.model, "weights": "unknown"}
    revision = folder.name if folder.parent.name == "snapshots" else None
    weights = f"revision {revision}" if revision else f"sha256 {weights_digest(folder)}"
    return {"model": train.model, "weights": weights}


def _make_without_memory(
    train: TrainSpec, tokenizer: RowTokenizer, *, device: torch.device, with_weights: bool
) -> Made | None:  # fmt: skip
    folder = _folder(train)
    if folder is None:
        return None
    built: Any
    trial: Any
    built, trial = build_without_memory(train, tokenizer)
    source = open_base(folder, built)
    if source is None:
        return None
    if train.method == "lora":
        add_adapters(built, train)
        add_adapters(trial, train)
        source = open_base(folder, built)
        assert source is not None
    layout, head = _try_out(trial.to(device), train, pad_id=tokenizer.pad_id, device=device)
    if layout is Layout.ROWS:
        use_rows_attention(built)
    _store_frozen_small(built, train)

    def fill(model: nn.Module) -> None:
        give_memory(model, params=torch.device("cpu") if train.cpu_offload else device, buffers=device)
        if with_weights:
            source.fill(model)
        if train.method == "lora":
            reset_adapters(model, train.seed)

    return Made(built, layout, attach_loss_head(built) if head is not None else None, fill)


def _try_out(
    model: nn.Module, train: TrainSpec, *, pad_id: int, device: torch.device
) -> tuple[Layout, LossHead | None]:  # fmt: skip
    # Flash attention's backward pass on a GPU adds up in an order of its own, so bits are not promised with it.
    may_cut = train.attention == "auto" and not (device.type == "cuda" and train.exactness == "bits")
    before = str(getattr(model.config, "_attn_implementation", ""))
    layout = choose_layout(model, pad_id=pad_id, device=device, may_cut=may_cut)
    if layout is Layout.ROWS and not keep_flash(model, train, before=before, pad_id=pad_id, device=device):
        layout = choose_layout(model, pad_id=pad_id, device=device, may_cut=False)
    head = None
    if train.cross_entropy == "chunked":
        head = choose_loss_head(model, layout=layout, pad_id=pad_id, device=device)
    return layout, head


def _store_frozen_small(model: nn.Module, train: TrainSpec) -> None:
    """What is not trained needs no float32: it is kept in the type of the forward pass."""
    for param in model.parameters():
        if not param.requires_grad:
            param.data = param.data.to(getattr(torch, train.dtype))


def _folder(train: TrainSpec) -> Path | None:
    """The folder that holds a pretrained model's files, fetched if need be; None where it has no safetensors."""
    found = resolve_model(train.base, weights=True)
    if not Path(found).is_dir():
        from huggingface_hub import snapshot_download

        with foreign_model_errors(train.model, "model"):
            found = snapshot_download(found, allow_patterns=["*.json", "*.safetensors"])
    folder = Path(found)
    return folder if any(folder.glob("*.safetensors")) else None
