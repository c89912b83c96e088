"""From a job to a model that an engine can take: built, adapted, tried out, and the way its base weights come in.

A model is tried out (layout of rows, chunked loss) before it is spread. A pretrained one is built without memory and
tried out on a small one of the same architecture. Its weights are then read tensor by tensor (base_weights.py), each in
the type it is kept in: what is frozen never takes float32's bytes on a device. fsdp reads after it has sharded, each
rank its own part; deepspeed-zero3 cuts each parameter up before the next one is read; the others read the whole model
onto the device. A model that cannot be read like that is loaded whole, on the CPU, by every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, reset_adapters
from alpaca_jobs.training.attention import use_rows_attention
from alpaca_jobs.training.base_weights import Fill, open_base
from alpaca_jobs.training.collate import Layout, choose_layout, choose_loss_head
from alpaca_jobs.training.engines.choice import choose_engine
from alpaca_jobs.training.flash_check import keep_flash
from alpaca_jobs.training.hub import TINY_LLAMA, foreign_model_errors, resolve_model
from alpaca_jobs.training.loss import LossHead, attach_loss_head
from alpaca_jobs.training.model import build_model, build_trial, build_without_memory
from alpaca_jobs.training.peak_memory import free_memory_bytes
from alpaca_jobs.training.tokenizer import RowTokenizer
from alpaca_jobs.training.weights import files_digest, weights_digest

_SPREAD_AS_THEY_FILL = ("fsdp", "deepspeed-zero3")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Made:
    """A model before it is spread.

    Attributes:
        fill: gives a model its memory and weights while an engine spreads it; None: it has them.
    """

    model: nn.Module
    layout: Layout
    loss_head: LossHead | None
    fill: Fill | None


def make_model(
    train: TrainSpec, tokenizer: RowTokenizer, *, device: torch.device, world_size: int, with_weights: bool = True,
    ranks_per_node: int = 1,
) -> Made:  # fmt: skip
    """Build the job's model, with adapters where it has some, and find out how rows and losses go through it.

    Args:
        ranks_per_node: that share this machine's memory.

    Raises:
        ModelError: the base model cannot be loaded or adapted, or would have to be loaded whole by more ranks than this
            machine has memory for.
    """
    engine, _ = choose_engine(train, world_size=world_size)
    if train.model != TINY_LLAMA:
        return _make_pretrained(
            train, tokenizer, engine=engine, device=device, with_weights=with_weights, ranks=ranks_per_node
        )
    model = build_model(train, tokenizer, device=device)
    if train.method == "lora":
        add_adapters(model, train)
        reset_adapters(model, train.seed)
    layout, head = _try_out(model, train, pad_id=tokenizer.pad_id, device=device)
    _store_small(model, train, engine=engine)
    return Made(model, layout, head, None)


def name_base(train: TrainSpec) -> dict[str, str]:
    """Which base model this is: its name, and what tells its weights from others'.

    That is the digest of a folder's weights; for a model of the hub's cache, the revision, which is a digest already.
    """
    if train.model == TINY_LLAMA:
        return {"model": train.model, "weights": f"made from seed {train.seed}"}
    folder = weights_folder(train)
    if folder.parent.name == "snapshots":
        weights = f"revision {folder.name}"
    elif any(folder.glob("*.safetensors")):
        weights = f"sha256 {weights_digest(folder)}"
    else:
        weights = f"sha256 of files {files_digest(folder, '*.bin')}"
    return {"model": train.model, "weights": weights}


def weights_folder(train: TrainSpec) -> Path:
    """The folder that holds a pretrained model's weights, fetched if need be: safetensors, or else .bin files.

    Raises:
        ModelError: there is no such model.
    """
    found = resolve_model(train.base, weights=True)
    if not Path(found).is_dir():
        from huggingface_hub import snapshot_download

        with foreign_model_errors(train.model, "model"):
            for pattern in ("*.safetensors", "*.bin"):
                folder = Path(snapshot_download(train.base, allow_patterns=["*.json", pattern]))
                if any(folder.glob(pattern)):
                    break
        return folder
    return Path(found)


def _make_pretrained(
    train: TrainSpec, tokenizer: RowTokenizer, *, engine: str, device: torch.device, with_weights: bool, ranks: int
) -> Made:
    model, trial = build_without_memory(train, tokenizer), build_trial(train)
    source = open_base(weights_folder(train), model) if with_weights else None
    is_whole = with_weights and source is None
    if is_whole:
        check_host_memory(train.model, model, ranks=ranks, free=free_memory_bytes())
        model = build_model(train, tokenizer, device=_CPU)
    if train.method == "lora":
        add_adapters(model, train)
        add_adapters(trial, train)
        if is_whole:
            reset_adapters(model, train.seed)
    layout, head = _try_out(trial.to(device), train, pad_id=tokenizer.pad_id, device=device)
    del trial
    if layout is Layout.ROWS:
        use_rows_attention(model)
    _store_small(model, train, engine=engine)
    fill = None
    if not is_whole:
        params = _CPU if train.cpu_offload and engine == "fsdp" else device
        fill = Fill(source, train.seed if train.method == "lora" else None, params=params, buffers=device)
    if engine not in _SPREAD_AS_THEY_FILL:
        if fill is None:
            model.to(device)
        else:
            for _ in fill.one_by_one(model):
                pass
            fill = None
    return Made(model, layout, attach_loss_head(model) if head is not None else None, fill)


def check_host_memory(name: str, model: nn.Module, *, ranks: int, free: int | None) -> None:
    """Refuse to load a whole float32 model once for each rank of a machine that has no room for that: the system would
    kill a rank in the middle, and the next attempt again.

    Args:
        model: without memory.
        free: bytes; None where nobody knows.

    Raises:
        ModelError: it does not fit.
    """
    needed = 4 * sum(param.numel() for param in model.parameters())
    if free is not None and ranks * needed > free:
        raise ModelError(
            f"{name} is stored in a way that cannot be read part by part, so that each of {ranks} ranks on this "
            f"machine loads all of it, {needed / 2**30:.1f} GiB in float32, and {free / 2**30:.1f} GiB of host memory "
            "are free. Save it once with this version of transformers (from_pretrained, then save_pretrained) and name "
            "that folder, or take a machine with more memory."
        )


def _try_out(
    model: nn.Module, train: TrainSpec, *, pad_id: int, device: torch.device
) -> tuple[Layout, LossHead | None]:  # fmt: skip
    before = str(getattr(model.config, "_attn_implementation", ""))
    layout = choose_layout(model, pad_id=pad_id, device=device, may_cut=train.attention == "auto")
    if layout is Layout.ROWS and not keep_flash(model, train, before=before, pad_id=pad_id, device=device):
        layout = choose_layout(model, pad_id=pad_id, device=device, may_cut=False)
    head = None
    if train.cross_entropy == "chunked":
        head = choose_loss_head(model, layout=layout, pad_id=pad_id, device=device)
    return layout, head


def _store_small(model: nn.Module, train: TrainSpec, *, engine: str) -> None:
    """What is not trained needs no float32: it is kept in the type of the forward pass. DeepSpeed keeps float32 copies
    of what is trained in shards of its own, and wants all of the model in that type.
    """
    for param in model.parameters():
        if not param.requires_grad or engine.startswith("deepspeed"):
            param.data = param.data.to(getattr(torch, train.dtype))
