"""TrainState: model, optimizer and counters of one rank; what of it goes into a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.training.batching import rows_seen
from alpaca_jobs.training.collate import Layout, choose_layout, choose_loss_head
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.dataset import count_steps
from alpaca_jobs.training.fingerprint import train_fingerprint
from alpaca_jobs.training.kernels import use_fast_kernels
from alpaca_jobs.training.loss import LossHead
from alpaca_jobs.training.model import build_model, shard_model
from alpaca_jobs.training.optimizer import ShardedAdamW
from alpaca_jobs.training.tokenizer import load_tokenizer
from checkpoints.keys import CommitRef

if TYPE_CHECKING:
    from checkpoints.manifest import Manifest


@dataclass
class TrainState:
    """What changes while training, and what follows from the job once and for all (num_steps, layout, fingerprint)."""

    model: nn.Module
    optimizer: ShardedAdamW
    layout: Layout
    loss_head: LossHead | None
    pad_id: int
    num_steps: int
    fingerprint: str
    step: int = 0
    tokens_seen: int = 0
    losses: list[float] = field(default_factory=list)
    """Of every step since step 1, whichever attempt made it: older checkpoints are deleted, the curve stays whole."""

    def tensors(self) -> dict[str, Any]:
        """Everything a checkpoint holds as tensors, nested by name; loading writes into these very tensors."""
        return {
            "model": model_tensors(self.model),
            "optimizer": {
                "exp_avg": self.optimizer.exp_avg,
                "exp_avg_sq": self.optimizer.exp_avg_sq,
                "steps": self.optimizer.steps,
            },
        }

    def meta(self, *, learning_rate: float, num_rows: int, global_batch_size: int) -> dict[str, Any]:
        """What a checkpoint says without tensors. Losses are written in hex: every bit, on any machine."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "rows_seen": rows_seen(self.step, num_rows, global_batch_size),
            "tokens_seen": self.tokens_seen,
            "lr": learning_rate,
            "losses": {"first_step": 1, "hex": [loss.hex() for loss in self.losses]},
        }


def build_state(ctx: TrainContext) -> TrainState:
    """Model, optimizer and counters at step 0, sharded over the ranks.

    With a checkpoint to continue from, a base model's weights are not read: a fresh machine need not download them.

    Raises:
        ModelError: the base model cannot be loaded.
    """
    tokenizer = load_tokenizer(ctx.tokenizer_files)
    device = torch.device(ctx.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    model = build_model(ctx.train, tokenizer, device=device, with_weights=not ctx.candidates)
    # Flash attention's backward pass on a GPU adds up in an order of its own, so bits are not promised with it.
    may_cut = ctx.train.attention == "auto" and not (device.type == "cuda" and ctx.train.exactness == "bits")
    layout = choose_layout(model, pad_id=tokenizer.pad_id, device=device, may_cut=may_cut)
    head = None
    if ctx.train.cross_entropy == "chunked":
        head = choose_loss_head(model, layout=layout, pad_id=tokenizer.pad_id, device=device)
    use_fast_kernels(model, ctx.train, device=device)
    shard_model(model, ctx.train, device=device)
    return TrainState(
        model=model,
        optimizer=ShardedAdamW(model, ctx.train),
        layout=layout,
        loss_head=head,
        pad_id=tokenizer.pad_id,
        num_steps=count_steps(len(ctx.rows), ctx.train),
        fingerprint=train_fingerprint(ctx.train, data_digest=ctx.rows.digest, tokenizer_files=ctx.tokenizer_files),
    )


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and the buffers that count as state, by name; a tied parameter once."""
    persistent = set(model.state_dict())
    tensors: dict[str, Tensor] = {name: param.detach() for name, param in model.named_parameters()}
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors


def restore(state: TrainState, ctx: TrainContext) -> tuple[CommitRef | None, tuple[str, ...]]:
    """Load the newest candidate that is whole; all ranks together.

    Returns:
        The commit that was loaded (None without candidates: step 0), and a text for each newer one that was not whole.

    Raises:
        NoGoodCommit: there are candidates, and none is whole.
        TrainingError: the newest whole one belongs to another training.
    """
    loaded = ctx.checkpointer.load_newest(ctx.candidates, state.tensors())
    if loaded is None:
        return None, ()
    _continue_from(state, loaded.ref, loaded.manifest)
    return loaded.ref, loaded.fallbacks


def _continue_from(state: TrainState, ref: CommitRef, manifest: Manifest) -> None:
    meta: Mapping[str, Any] = manifest.meta
    if manifest.fingerprint != state.fingerprint:
        raise TrainingError(
            f"The checkpoint of {ref} belongs to another training: its fingerprint is "
            f"{manifest.fingerprint[:12] or 'empty'}, this job's is {state.fingerprint[:12]}. Something that changes "
            "the result differs: train settings, rows or tokenizer. Undo the change to resume, or launch it as a new "
            "run."
        )
    state.step = int(meta["step"])
    state.tokens_seen = int(meta["tokens_seen"])
    state.losses[:] = [float.fromhex(text) for text in meta["losses"]["hex"]]
