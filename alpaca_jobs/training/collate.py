"""Rows of a micro batch to tensors without padding, and the check that attention never crosses from row to row.

Shapes: T = tokens of the micro batch, K = its target tokens, B = rows, L = longest row.
    packed   input_ids, position_ids (1, T); loss is computed at K places only
    padded   input_ids, attention_mask (B, L); for models that cannot keep packed rows apart

Packing goes wrong silently: transformers makes a block-diagonal mask from position_ids only if attention_mask is None
and use_cache is False, and some models (OPT) never do, for they fill in a mask of ones. `choose_layout` therefore tries
it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from alpaca_jobs.training.attention import row_borders, use_rows_attention, with_edges, without_flash
from alpaca_jobs.training.data import EpochRows
from alpaca_jobs.training.loss import LossHead, attach_loss_head
from alpaca_jobs.training.model import accepts

logger = logging.getLogger(__name__)

_ROUNDING = 1e-3  # relative; float32 differs by about 1e-6, a leaking or misplaced row by more than 1e-2


class Layout(StrEnum):
    """How the rows of a micro batch lie in a tensor, and what keeps them apart."""

    ROWS = "rows"  # packed; each row is cut out and attends to itself (attention.py)
    POSITIONS = "positions"  # packed; transformers masks from position_ids, which begin anew with each row
    BLOCK_MASK = "block_mask"  # packed; a 4-D additive mask is handed in
    PADDED = "padded"


@dataclass(frozen=True)
class MicroBatch:
    """The tensors of one forward pass, on the CPU.

    Attributes:
        rows: token ids of each row; one token that predicts nothing stands in for an empty micro batch.
        targets: for each row, the places whose next token is a target.
        owners: for each row, which of the data's rows of this micro batch it is a piece of; empty: one each, in order.
    """

    rows: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    owners: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """T, padding excluded."""
        return sum(len(row) for row in self.rows)


def collate(data: EpochRows, rows: Sequence[int]) -> MicroBatch:
    """Take rows by index. The first token of a row is never a target, so no row is predicted from the one before it."""
    if not rows:
        return MicroBatch((torch.zeros(1, dtype=torch.int64),), (torch.zeros(0, dtype=torch.int64),))
    ids, targets, owners = [], [], []
    for place, row in enumerate(rows):
        for tokens, is_target in data.pieces(row):
            ids.append(torch.from_numpy(tokens.astype(np.int64)))
            targets.append(torch.from_numpy(np.flatnonzero(is_target[1:])))
            owners.append(place)
    return MicroBatch(tuple(ids), tuple(targets), tuple(owners))


@dataclass(frozen=True)
class Inputs:
    """A micro batch as the model's forward pass takes it.

    Attributes:
        model_inputs: the model's keyword arguments.
        places: which of the (B * L) tokens predict a target, (K,) int64.
        labels: what they predict, (K,) int64.
        token_weights: what each of them counts in the loss, (K,) float32; None means 1 each.
    """

    model_inputs: Mapping[str, Any]
    places: Tensor
    labels: Tensor
    token_weights: Tensor | None = None

    def pinned(self) -> Inputs:
        """The same in page-locked memory, from where a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Inputs:
        """The same on a device; does not wait for the copies of pinned tensors."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        ends = self.model_inputs.get("cu_seq_lens_q")
        if ends is not None and not ends.is_cuda:
            with_edges(moved.model_inputs["cu_seq_lens_q"], ends)
        return moved

    def _each(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        given = {
            name: change(value) if isinstance(value, Tensor) else value for name, value in self.model_inputs.items()
        }
        weights = None if self.token_weights is None else change(self.token_weights)
        return Inputs(given, change(self.places), change(self.labels), weights)


def lay_out(
    batch: MicroBatch,
    *,
    layout: Layout,
    pad_id: int,
    mask_dtype: torch.dtype = torch.float32,
    row_weights: Sequence[float] | None = None,
) -> Inputs:
    """Put the rows of a micro batch into the tensors of one forward pass.

    Args:
        mask_dtype: of the block mask; the type of the model's parameters (FSDP casts it with the other inputs).
        row_weights: what each target token of a row counts in the loss; None means 1.
    """
    places, ids = batch.targets, batch.rows
    given: dict[str, Any]
    if layout is Layout.PADDED:
        longest = max(len(row) for row in ids)
        given = _padded(ids, longest=longest, pad_id=pad_id)
        starts = [index * longest for index in range(len(ids))]
    else:
        given = {
            "input_ids": torch.cat(ids)[None],
            "position_ids": torch.cat([torch.arange(len(row)) for row in ids])[None],
        }
        starts = np.cumsum([0, *(len(row) for row in ids)])[:-1].tolist()
        if layout is Layout.ROWS:
            given |= row_borders([len(row) for row in ids])
        if layout is Layout.BLOCK_MASK:
            given["attention_mask"] = _block_mask(ids, dtype=mask_dtype)
    weights = None
    if row_weights is not None:
        pairs = zip(places, batch.owners, strict=False)  # an empty micro batch has a stand-in row, and no weights
        weights = torch.cat([torch.full((len(mine),), row_weights[row]) for mine, row in pairs] or [torch.zeros(0)])
    return Inputs(
        {**given, "use_cache": False},
        places=torch.cat([mine + start for mine, start in zip(places, starts, strict=True)]),
        labels=torch.cat([row[mine + 1] for row, mine in zip(ids, places, strict=True)]),
        token_weights=weights,
    )


def _padded(ids: Sequence[Tensor], *, longest: int, pad_id: int) -> dict[str, Tensor]:
    filled = torch.full((len(ids), longest), pad_id)
    mask = torch.zeros(len(ids), longest, dtype=torch.int64)
    for index, row in enumerate(ids):
        filled[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": filled, "attention_mask": mask}


def target_loss(model: nn.Module, inputs: Inputs, *, head: LossHead | None = None) -> Tensor:
    """Sum of the (weighted) cross entropies over the target tokens of a micro batch, float32 scalar; 0 with zero
    gradients if it has none.

    With a head, logits are made and dropped chunk by chunk; without, those of all target tokens are in memory at once.
    """
    if head is not None:
        with head.order(inputs.places, inputs.labels, inputs.token_weights):
            loss: Tensor = model(**inputs.model_inputs).logits
        return loss
    logits = target_logits(model, inputs).float()
    if not len(inputs.labels):  # one row of logits, so that every rank runs the same collectives
        return logits.sum() * 0.0
    if inputs.token_weights is None:
        return functional.cross_entropy(logits, inputs.labels, reduction="sum")
    return (functional.cross_entropy(logits, inputs.labels, reduction="none") * inputs.token_weights).sum()


def target_logits(model: nn.Module, inputs: Inputs) -> Tensor:
    """Logits at the places that predict a target, (K, vocabulary); (1, vocabulary) if there are none."""
    places = inputs.places if len(inputs.places) else inputs.places.new_zeros(1)
    if "position_ids" in inputs.model_inputs and accepts(model, "logits_to_keep"):
        logits: Tensor = model(**inputs.model_inputs, logits_to_keep=places).logits
        return logits[0]
    logits = model(**inputs.model_inputs).logits
    return logits.flatten(0, 1)[places]


def _block_mask(ids: Sequence[Tensor], *, dtype: torch.dtype) -> Tensor:
    """Additive mask (1, 1, T, T): 0 where a token may look, the lowest number elsewhere.

    Additive, not bool: eager attention adds whatever it is given, so a bool mask would let every token look everywhere.
    """
    owner = torch.cat([torch.full((len(row),), index) for index, row in enumerate(ids)])
    may_look = (owner[:, None] == owner[None, :]).tril()
    mask = torch.zeros(may_look.shape, dtype=dtype).masked_fill(~may_look, torch.finfo(dtype).min)
    return mask[None, None]


def choose_layout(model: nn.Module, *, pad_id: int, device: torch.device, may_cut: bool = True) -> Layout:
    """Find the first layout in which a row's logits do not depend on the rows beside it.

    Call it before the model is sharded: FSDP keeps parameters gathered after a forward pass without a backward pass,
    and would go on with the old ones after a checkpoint is loaded.

    Three made-up rows are run in evaluation mode: [a, b] and [c, b] with c as long as a, and b alone as the model takes
    it by itself. b's logits must have the same bits in the first two (what is masked weighs exactly 0), and agree with
    the third to rounding. All in float32; flash attention, which has no float32, is tried by flash_check.py.

    Args:
        may_cut: whether Layout.ROWS may be chosen, which gives the model another attention (attention.py).
    """
    vocab_size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(vocab_size, (size,), generator=generator) for size in (23, 30, 23))
    dtype = next(model.parameters()).dtype

    @torch.no_grad()
    def logits_of_b(*before: Tensor, layout: Layout) -> Tensor:
        nothing, all_of_b = torch.zeros(0, dtype=torch.int64), torch.arange(len(b) - 1)
        batch = MicroBatch((*before, b), (*(nothing for _ in before), all_of_b))
        inputs = lay_out(batch, layout=layout, pad_id=pad_id, mask_dtype=dtype).to(device)
        return target_logits(model, inputs).float()

    def is_isolated(layout: Layout) -> bool:
        after_a, after_c = logits_of_b(a, layout=layout), logits_of_b(c, layout=layout)
        close = bool((after_a - alone).abs().max() <= _ROUNDING * alone.abs().max())
        return bool(torch.equal(after_a, after_c)) and close

    was_training = model.training
    model.eval()
    try:
        with without_flash():
            alone = logits_of_b(layout=Layout.PADDED)
            if not accepts(model, "position_ids"):
                return Layout.PADDED
            if may_cut and _can_be_cut(model, is_isolated):
                return Layout.ROWS
            masked = (Layout.POSITIONS, Layout.BLOCK_MASK)
            return next((layout for layout in masked if is_isolated(layout)), Layout.PADDED)
    finally:
        model.train(was_training)


def _can_be_cut(model: Any, is_isolated: Callable[[Layout], bool]) -> bool:
    """Switch the model to attention by rows if that keeps rows apart; otherwise it is left as it was."""
    config = getattr(model, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if config is None or not kinds <= {
        "full_attention",
        "sliding_attention",
    }:  # chunks and the like show only in longer rows
        return False
    before = use_rows_attention(model)
    if before is None:
        return False
    try:
        if is_isolated(Layout.ROWS):
            return True
    except (ValueError, TypeError, RuntimeError) as exc:
        logger.info("%s keeps its own attention: %s", type(model).__name__, exc)
    model.set_attn_implementation(before)
    return False


@torch.no_grad()
def choose_loss_head(model: nn.Module, *, layout: Layout, pad_id: int, device: torch.device) -> LossHead | None:
    """The head that makes the model's loss without its logits, or None where that would not be its loss.

    Some models scale or cap their logits after the output embedding (Gemma 2, Cohere), so the loss of two made-up rows
    is computed both ways and has to agree. Call it before the model is sharded, like `choose_layout`.
    """
    head = attach_loss_head(model)
    if head is None:
        return None
    vocab_size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    rows = tuple(torch.randint(vocab_size, (size,), generator=generator) for size in (9, 5))
    batch = MicroBatch(rows, tuple(torch.arange(len(row) - 1) for row in rows))
    dtype = next(model.parameters()).dtype
    inputs = lay_out(batch, layout=layout, pad_id=pad_id, mask_dtype=dtype).to(device)
    was_training = model.training
    model.eval()
    try:
        with without_flash():
            plain = target_loss(model, inputs)
            loss = target_loss(model, inputs, head=head)
        if loss.ndim == 0 and bool((loss - plain).abs() <= _ROUNDING * plain.abs()):
            return head
    except (RuntimeError, TypeError, IndexError) as exc:  # the model does more with its logits than hand them out
        logger.info("%s takes its loss from whole logits: %s", type(model).__name__, exc)
    finally:
        model.train(was_training)
    head.remove()
    return None
