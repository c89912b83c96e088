"""Tries flash attention out on a model before it trains: in the type it will compute in, beside a call for each row.

`collate.choose_layout` tries layouts in float32, where flash attention has no kernel; what a GPU then computes in
bfloat16 is another program, with its own rules about rows, windows and heads. It is tried here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.attention import without_flash
from alpaca_jobs.training.collate import Layout, MicroBatch, lay_out, target_logits

logger = logging.getLogger(__name__)

TOLERANCE = 0.06
"""Of the largest logit. Rounding of attention in bfloat16 came to 0.006 to 0.016 of it, rows that see each other, a
missing causal mask or a wrong scale to 0.27 and more (random LLaMA of 2 to 8 layers, hidden 128 to 2048, on a CPU with
torch 2.13, 2026-11-22)."""


@contextmanager
def stored_as(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the model's parameters are of this type; afterwards they are what they were, to the last bit. Buffers
    (positions) stay.
    """
    before = [(param, param.data) for param in model.parameters() if param.dtype != dtype]
    try:
        for param, data in before:
            param.data = data.to(dtype)
        yield
    finally:
        for param, data in before:
            param.data = data


@torch.no_grad()
def flash_agrees(model: nn.Module, *, dtype: torch.dtype, pad_id: int, device: torch.device) -> bool:
    """Whether the logits of three made-up rows side by side are the same with flash attention and row by row, to
    rounding (TOLERANCE). The model has Layout.ROWS's attention.
    """
    vocab_size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    generator = torch.Generator().manual_seed(0)
    rows = tuple(torch.randint(vocab_size, (size,), generator=generator) for size in (23, 30, 1))
    batch = MicroBatch(rows, tuple(torch.arange(max(0, len(row) - 1)) for row in rows))
    inputs = lay_out(batch, layout=Layout.ROWS, pad_id=pad_id).to(device)

    def logits() -> Tensor:
        return target_logits(model, inputs).float()

    was_training = model.training
    model.eval()
    try:
        with stored_as(model, dtype):
            with without_flash():
                wanted = logits()
            difference = (logits() - wanted).abs().max() / wanted.abs().max()
    except (ValueError, RuntimeError) as exc:
        logger.warning("Flash attention does not run on this GPU: %s", str(exc).splitlines()[0])
        return False
    finally:
        model.train(was_training)
    if bool(difference <= TOLERANCE):  # False for what is no number, too
        return True
    logger.warning("Flash attention is off by %.0f %% of the largest logit here.", 100 * float(difference))
    return False


def keep_flash(model: Any, train: TrainSpec, *, before: str, pad_id: int, device: torch.device) -> bool:
    """Whether a model that was given Layout.ROWS's attention may train with it; else it gets the one before back.

    Only where it would use flash attention: on a GPU, in a type that is not float32.
    """
    dtype = getattr(torch, train.dtype)
    if device.type != "cuda" or dtype is torch.float32:
        return True
    if flash_agrees(model, dtype=dtype, pad_id=pad_id, device=device):
        return True
    model.set_attn_implementation(before)
    return False
