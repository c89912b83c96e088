"""TrainState: model, optimizer and counters of one rank; what of it goes into a checkpoint, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.run_layout import EVAL_LOSS
from alpaca_jobs.training.batching import rows_seen
from alpaca_jobs.training.collate import Layout
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.dataset import count_steps
from alpaca_jobs.training.engines import Engine, make_engine
from alpaca_jobs.training.evaluation import Evaluation, read_evaluations, write_evaluations
from alpaca_jobs.training.fingerprint import train_fingerprint
from alpaca_jobs.training.kernels import use_fast_kernels
from alpaca_jobs.training.loss import LossHead
from alpaca_jobs.training.making import make_model, name_base
from alpaca_jobs.training.tokenizer import load_tokenizer
from checkpoints.best import METRICS
from checkpoints.keys import CommitRef

if TYPE_CHECKING:
    from checkpoints.manifest import Manifest


@dataclass
class TrainState:
    """What changes while training, and what follows from the job once and for all (num_steps, layout, fingerprint)."""

    engine: Engine
    layout: Layout
    loss_head: LossHead | None
    pad_id: int
    num_steps: int
    fingerprint: str
    step: int = 0
    tokens_seen: int = 0
    base: Mapping[str, str] | None = None
    """Method lora: which base model the adapters belong to."""
    losses: list[float] = field(default_factory=list)
    """Of every step since step 1, whichever attempt made it: older checkpoints are deleted, the curve stays whole."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """All since step 1, in order."""

    def meta(self, *, learning_rate: float, num_rows: int, global_batch_size: int) -> dict[str, Any]:
        """What a checkpoint says without tensors. Losses are written in hex: every bit, on any machine."""
        return {
            "step": self.step,
            "num_steps": self.num_steps,
            "rows_seen": rows_seen(self.step, num_rows, global_batch_size),
            "tokens_seen": self.tokens_seen,
            "lr": learning_rate,
            "losses": {"first_step": 1, "hex": [loss.hex() for loss in self.losses]},
            **({"base": dict(self.base)} if self.base else {}),
            **self._evaluated(),
        }

    def _evaluated(self) -> dict[str, Any]:
        """Evaluations in hex like losses; and as a number the one of this very state, by which it may be kept."""
        if not self.evaluations:
            return {}
        step, loss = self.evaluations[-1]
        meta: dict[str, Any] = {"evaluations": write_evaluations(self.evaluations)}
        if step == self.step and math.isfinite(loss):
            meta[METRICS] = {EVAL_LOSS.name: loss}
        return meta


def build_state(ctx: TrainContext, *, with_weights: bool | None = None) -> TrainState:
    """Model, optimizer and counters at step 0, spread over the ranks.

    Args:
        with_weights: read a base model's weights; None: unless there is a checkpoint to continue from, but always those
            that adapters stand beside. False leaves a base without them unnamed.

    Raises:
        ModelError: the base model cannot be loaded.
    """
    train, tokenizer, device = ctx.train, load_tokenizer(ctx.tokenizer_files), torch.device(ctx.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if with_weights is None:
        with_weights = not ctx.candidates or train.method == "lora"
    ranks_per_node = ctx.ranks_per_node or ctx.world_size
    made = make_model(
        train, tokenizer, device=device, world_size=ctx.world_size, with_weights=with_weights,
        ranks_per_node=ranks_per_node,
    )  # fmt: skip
    use_fast_kernels(made.model, train, device=device)
    engine = make_engine(
        made.model, train, device=device, world_size=ctx.world_size, ranks_per_node=ranks_per_node, fill=made.fill
    )
    return TrainState(
        engine=engine,
        layout=made.layout,
        loss_head=made.loss_head,
        pad_id=tokenizer.pad_id,
        num_steps=count_steps(len(ctx.rows), train),
        fingerprint=train_fingerprint(train, data_digest=ctx.rows.digest, tokenizer_files=ctx.tokenizer_files),
        base=name_base(train) if train.method == "lora" and with_weights else None,
    )


def restore(state: TrainState, ctx: TrainContext) -> tuple[CommitRef | None, tuple[str, ...]]:
    """Load the newest candidate that is whole; all ranks together.

    Returns:
        The commit that was loaded (None without candidates: step 0), and a text for each newer one that was not whole.

    Raises:
        NoGoodCommit: there are candidates, and none is whole.
        TrainingError: the newest whole one belongs to another training.
    """
    tensors = state.engine.state()
    loaded = ctx.checkpointer.load_newest(ctx.candidates, tensors)
    if loaded is None:
        return None, ()
    state.engine.after_load(tensors)
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
    if state.base is not None and meta.get("base", {}).get("weights") != state.base["weights"]:
        raise TrainingError(
            f"The adapters of {ref} were trained beside {meta.get('base')}, but {state.base} is here: the base model "
            "has changed. Put the old one back, or launch this as a new run."
        )
    state.step = int(meta["step"])
    state.tokens_seen = int(meta["tokens_seen"])
    state.evaluations[:] = read_evaluations(meta)
    state.losses[:] = [float.fromhex(text) for text in meta["losses"]["hex"]]
