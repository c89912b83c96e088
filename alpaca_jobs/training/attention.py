"""Attention for rows that lie side by side: each row looks at itself alone, and nothing is computed between rows.

A block mask keeps rows apart as well, but computes T x T scores and throws most of them away: with 32 Alpaca rows side
by side that is as much work as the rest of a small model. Here rows are cut out: on a GPU in bfloat16 by torch's own
variable-length flash attention, elsewhere by one call of scaled_dot_product_attention for each row. In torch's
deterministic mode (`exactness: bits`) the backward pass of flash attention adds up in a fixed order. Source: torch
2.13, aten/src/ATen/native/transformers/cuda/attention_backward.cu.

The borders travel as the model's keyword arguments of the same names as for flash attention, so gradient checkpointing
repeats them; they also carry themselves as numbers of the host, so that the row loop asks no GPU for them. transformers
makes no mask for an implementation it has no mask function for, which is what we want.
Shapes: T = tokens, G = heads of keys and values, D = size of a head.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

logger = logging.getLogger(__name__)

ROWS = "alpaca_rows"
"""The implementation's name in transformers' registry."""
_MAX_FLASH_HEAD = 256
"""Largest head of flash attention 2. Source: the FlashAttention repository's README (read 2026-11)."""
_FLASH_HEAD_UNIT = 8
"""Heads have a multiple of this size. Source: torch 2.13, aten/src/ATen/native/transformers/cuda/flash_attn."""
_EDGES = "alpaca_row_edges"  # an attribute of the tensor of borders: the same numbers on the host
_state: dict[str, Any] = {"flash": True, "row_by_row": None, "groups": None}
_told: set[str] = set()


def use_rows_attention(model: Any) -> str | None:
    """Switch a model to this attention; returns the name of the one it had, None where a model cannot switch."""
    from transformers import AttentionInterface

    AttentionInterface.register(ROWS, rows_attention)
    before = str(model.config._attn_implementation)
    if not model._can_set_attn_implementation():
        return None
    try:
        model.set_attn_implementation(ROWS)
    except (ValueError, ImportError):
        return None
    return before


def row_borders(lengths: Sequence[int]) -> dict[str, Any]:
    """The model's keyword arguments that tell where rows begin and end."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def with_edges(borders: Any, on_host: Tensor) -> Any:
    """The borders on a device, now with their numbers: to read those from a GPU would be a wait in every layer."""
    setattr(borders, _EDGES, on_host.tolist())
    return borders


@contextmanager
def without_flash() -> Iterator[None]:
    """Within it every row is computed by a call of its own, on GPUs too: what flash attention is compared with."""
    _state["flash"] = False
    try:
        yield
    finally:
        _state["flash"] = True


def keep_uncompiled() -> None:
    """Keep torch.compile out of the loop over rows, whose lengths differ in every batch; called before it compiles.

    Not by a decorator: saying so loads the compiler, which takes two seconds, in every process.
    """
    if _state["row_by_row"] is None:
        _state["row_by_row"] = torch.compiler.disable(_row_by_row)  # type: ignore[no-untyped-call]


def why_no_flash(query: Tensor, dropout: float) -> str | None:
    """What keeps variable-length flash attention from these tensors, in words; None if nothing does."""
    if not query.is_cuda:
        return "the device is no GPU"
    if query.dtype not in (torch.bfloat16, torch.float16):
        return f"train.dtype is {str(query.dtype).removeprefix('torch.')}"
    size = query.shape[-1]
    if size > _MAX_FLASH_HEAD or size % _FLASH_HEAD_UNIT:
        return f"its heads have a size of {size}"
    return "it has dropout in its attention" if dropout else None


def flash_operators() -> list[Any]:
    """The operator behind variable-length flash attention, for those who keep or count operators; none in a torch that
    has it under another name. Source: torch 2.13, torch/nn/attention/varlen.py, which registers it when imported.
    """
    try:
        import torch.nn.attention.varlen
    except ImportError:
        return []
    operator = getattr(torch.ops.torch_attn, "_varlen_attn", None)
    return [] if operator is None else [operator.default]


def rows_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows, as transformers calls it.

    Args:
        query, key, value: (1, heads or G, T, D).
        attention_mask: None; rows are told by their borders.
        sliding_window: tokens a token may look back at, itself included; None for the whole row.
        cu_seq_lens_q: borders of the rows, (rows + 1,) int32.

    Returns:
        (1, T, heads, D), and no weights.

    Raises:
        ValueError: the model wants something that this attention does not do; it is given another one then.
    """
    if cu_seq_lens_q is None or max_length_q is None or attention_mask is not None:
        raise ValueError("rows_attention needs the rows' borders, and takes no mask")
    if softcap is not None or s_aux is not None or query.shape[0] != 1:
        raise ValueError("rows_attention knows neither capped scores nor sinks, and takes one batch of packed rows")
    if _state["flash"] and why_no_flash(query, dropout) is None:
        return _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling, sliding_window), None
    row_by_row = _state["row_by_row"] or _row_by_row
    return row_by_row(query, key, value, cu_seq_lens_q, scaling, dropout, sliding_window), None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # squeeze and not [0]: the backward pass of an index makes a tensor of zeros and copies into it.
    q, k, v = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    grouped: dict[str, Any] = {}
    if q.shape[1] != k.shape[1]:
        if takes_groups():
            grouped["enable_gqa"] = True
        else:
            k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    out = varlen_attn(
        q, k, v, borders, borders, longest, longest,
        scale=scale, window_size=(-1 if window is None else window - 1, 0), **grouped,
    )  # fmt: skip
    assert isinstance(out, Tensor)  # a pair only if more is asked for
    return out[None]


def takes_groups() -> bool:
    """Whether torch's attention lets heads of queries share those of keys and values; 2.11 has no word for it. Known
    from the first call on (flash_check.py's), so that a compiler that comes by later finds a plain value.
    """
    if _state["groups"] is None:
        from torch.nn.attention.varlen import varlen_attn

        _state["groups"] = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return bool(_state["groups"])


def _row_by_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    borders: Tensor,
    scale: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    if query.is_cuda and _state["flash"]:
        _tell_once(why_no_flash(query, dropout))
    edges = getattr(borders, _EDGES, None) or borders.tolist()
    parts = []
    for begin, end in pairwise(edges):
        length = end - begin
        mask = None
        if window is not None and length > window:
            places = torch.arange(length, device=query.device)
            back = places[:, None] - places[None, :]
            mask = (back >= 0) & (back < window)
        parts.append(
            functional.scaled_dot_product_attention(
                query[:, :, begin:end],
                key[:, :, begin:end],
                value[:, :, begin:end],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scale,
                is_causal=mask is None,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _tell_once(why: str | None) -> None:
    """Say what makes attention slow on a GPU; the layers and steps after the first have nothing to add."""
    if why is not None and why not in _told:
        _told.add(why)
        logger.warning(
            "Attention runs row by row on this GPU, several times slower than flash attention, because %s.", why
        )
