"""Rows of a micro batch to tensors without padding, and the check that attention never crosses from row to row.

Shapes: T = tokens of the micro batch, K = its target tokens, B = rows, L = longest row.
    packed   input_ids, position_ids (1, T); logits are computed at K places only
    padded   input_ids, attention_mask (B, L); for models that cannot keep packed rows apart

Packing goes wrong silently: transformers makes a block-diagonal mask from position_ids only if attention_mask is None
and use_cache is False, and some models (OPT) never do, for they fill in a mask of ones. `choose_layout` therefore tries
it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from alpaca_jobs.prompts import IGNORE_INDEX
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.model import accepts

_ROUNDING = 1e-3  # relative; float32 differs by about 1e-6, a leaking or misplaced row by more than 1e-2


class Layout(StrEnum):
    """How the rows of a micro batch lie in a tensor, and what keeps them apart."""

    POSITIONS = (
        "positions"  # packed; the model sees from position_ids where rows begin (varlen flash attention does too)
    )
    BLOCK_MASK = "block_mask"  # packed; a 4-D additive mask is handed in
    PADDED = "padded"


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass, on the CPU.

    Attributes:
        rows: token ids of each row; one token that predicts nothing stands in for an empty micro batch.
        targets: for each row, the places whose next token is a target.
    """

    rows: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    @property
    def num_tokens(self) -> int:
        """T, padding excluded."""
        return sum(len(row) for row in self.rows)


def collate(data: TokenizedRows, rows: Sequence[int]) -> MicroBatch:
    """Take rows by index. The first token of a row is never a target, so no row is predicted from the one before it."""
    if not rows:
        return MicroBatch((torch.zeros(1, dtype=torch.int64),), (torch.zeros(0, dtype=torch.int64),))
    ids, targets = [], []
    for row in rows:
        begin, end = int(data.offsets[row]), int(data.offsets[row + 1])
        ids.append(torch.from_numpy(data.tokens[begin:end].astype(np.int64)))
        targets.append(torch.from_numpy(np.flatnonzero(data.is_target[begin + 1 : end])))
    return MicroBatch(tuple(ids), tuple(targets))


def target_loss(model: nn.Module, batch: MicroBatch, *, layout: Layout, pad_id: int, device: torch.device) -> Tensor:
    """Sum of cross entropies over the target tokens of a micro batch, float32 scalar; 0 with zero gradients if it has
    none.
    """
    logits = target_logits(model, batch, layout=layout, pad_id=pad_id, device=device)
    labels = torch.cat([row[places + 1] for row, places in zip(batch.rows, batch.targets, strict=True)])
    if not len(labels):  # target_logits gave one row of logits, so that every rank runs the same collectives
        labels = torch.full((1,), IGNORE_INDEX)
    return functional.cross_entropy(logits.float(), labels.to(device), ignore_index=IGNORE_INDEX, reduction="sum")


def target_logits(
    model: nn.Module, batch: MicroBatch, *, layout: Layout, pad_id: int, device: torch.device
) -> Tensor:  # fmt: skip
    """Logits at the places that predict a target, (K, vocabulary); (1, vocabulary) if there are none."""
    if layout is Layout.PADDED:
        return _padded_logits(model, batch, pad_id=pad_id, device=device)
    starts = np.cumsum([0, *(len(row) for row in batch.rows)])
    keep = torch.cat([places + int(start) for places, start in zip(batch.targets, starts, strict=False)])
    keep = (keep if len(keep) else torch.zeros(1, dtype=torch.int64)).to(device)
    inputs: dict[str, Any] = {
        "input_ids": torch.cat(batch.rows)[None].to(device),
        "position_ids": torch.cat([torch.arange(len(row)) for row in batch.rows])[None].to(device),
        "use_cache": False,
    }
    if layout is Layout.BLOCK_MASK:
        inputs["attention_mask"] = _block_mask(batch, model=model, device=device)
    if accepts(model, "logits_to_keep"):
        logits: Tensor = model(**inputs, logits_to_keep=keep).logits
        return logits[0]
    logits = model(**inputs).logits
    return logits[0, keep]


def _padded_logits(model: nn.Module, batch: MicroBatch, *, pad_id: int, device: torch.device) -> Tensor:
    longest = max(len(row) for row in batch.rows)
    ids = torch.full((len(batch.rows), longest), pad_id)
    mask = torch.zeros(len(batch.rows), longest, dtype=torch.int64)
    for index, row in enumerate(batch.rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    logits: Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    row_index = torch.cat([torch.full_like(places, index) for index, places in enumerate(batch.targets)])
    column = torch.cat(batch.targets)
    if not len(column):
        return logits[:1, 0]
    return logits[row_index.to(device), column.to(device)]


def _block_mask(batch: MicroBatch, *, model: nn.Module, device: torch.device) -> Tensor:
    """Additive mask (1, 1, T, T): 0 where a token may look, the lowest number elsewhere.

    Additive, not bool: eager attention adds whatever it is given, so a bool mask would let every token look everywhere.
    """
    owner = torch.cat([torch.full((len(row),), index) for index, row in enumerate(batch.rows)])
    may_look = (owner[:, None] == owner[None, :]).tril()
    dtype = next(model.parameters()).dtype  # FSDP casts it with the other inputs
    mask = torch.zeros(may_look.shape, dtype=dtype).masked_fill(~may_look, torch.finfo(dtype).min)
    return mask[None, None].to(device)


def choose_layout(model: nn.Module, *, pad_id: int, device: torch.device) -> Layout:
    """Find the first layout in which a row's logits do not depend on the rows beside it.

    Call it before the model is sharded: FSDP keeps parameters gathered after a forward pass without a backward pass,
    and would go on with the old ones after a checkpoint is loaded.

    Three made-up rows are run in evaluation mode: [a, b], [c, b] with c as long as a, and b alone. b's logits must have
    the same bits in the first two (masked attention weighs exactly 0), and agree with the third to rounding.
    """
    vocab_size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(vocab_size, (size,), generator=generator) for size in (7, 6, 7))
    was_training = model.training
    model.eval()
    try:
        for layout in (Layout.POSITIONS, Layout.BLOCK_MASK):
            if not accepts(model, "position_ids"):
                break
            if _is_isolated(model, a, b, c, layout=layout, pad_id=pad_id, device=device):
                return layout
        return Layout.PADDED
    finally:
        model.train(was_training)


@torch.no_grad()
def _is_isolated(
    model: nn.Module, a: Tensor, b: Tensor, c: Tensor, *, layout: Layout, pad_id: int, device: torch.device
) -> bool:  # fmt: skip
    nothing, all_of_b = torch.zeros(0, dtype=torch.int64), torch.arange(len(b))

    def logits_of_b(*before: Tensor) -> Tensor:
        batch = MicroBatch((*before, b), (*(nothing for _ in before), all_of_b))
        return target_logits(model, batch, layout=layout, pad_id=pad_id, device=device).float()

    after_a, after_c, alone = logits_of_b(a), logits_of_b(c), logits_of_b()
    close = bool((after_a - alone).abs().max() <= _ROUNDING * alone.abs().max())
    return bool(torch.equal(after_a, after_c)) and close
