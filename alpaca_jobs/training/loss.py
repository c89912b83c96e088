"""Cross entropy of the target tokens, chunk by chunk against the output embedding: the logits of a batch never exist.

Shapes: T = tokens of the micro batch, K = its target tokens, H = hidden size, V = vocabulary.

The gradient of a cross entropy is known as soon as its logits are: softmax minus one-hot. So each chunk's share of the
gradients is made right after its logits, which are then dropped; the backward pass only scales what is there. That is
the same three matrix products as with all logits at once, with (chunk, V) in memory instead of (K, V) three times over.
Source of the idea: Liger kernels' fused linear cross entropy, arXiv:2410.10989, section 3.2.

Chunks are as even as they can be. Each one after the first reads and writes the sum of the embedding's gradients once
more, so a GPU, which has memory for it, takes larger ones: mostly one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK_ELEMENTS = 2**23
"""Logits of one chunk on a CPU: 32 MiB of float32, which is 262 tokens of a vocabulary of 32,000."""
GPU_CHUNK_ELEMENTS = 2**26
"""On a GPU: 256 MiB of float32, 2,097 such tokens, which are more targets than a GPU of eight has in a step of 128 of
Alpaca's rows."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    token_weights: Tensor | None = None,
    chunk_elements: int | None = None,
) -> Tensor:
    """Sum over tokens of (token weight times) the cross entropy of `hidden @ weight.T + bias`, float32 scalar.

    Arithmetic is that of the plain way: products in the type of `hidden`, softmax in float32.

    Args:
        hidden: (K, H); K may be 0, which gives 0 with zero gradients.
        weight: the output embedding, (V, H).
        labels: (K,) int64.
        bias: (V,) or None.
        token_weights: (K,) float32; None means 1 each.
        chunk_elements: logits of one chunk, at most; None: what suits the device.
    """
    if chunk_elements is None:
        chunk_elements = GPU_CHUNK_ELEMENTS if hidden.is_cuda else CHUNK_ELEMENTS
    most = max(1, chunk_elements // weight.shape[0])
    chunks = max(1, math.ceil(hidden.shape[0] / most))
    tokens = max(1, math.ceil(hidden.shape[0] / chunks))
    if not torch.is_grad_enabled():  # inside the function nobody could tell, and gradients would be made for nothing
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, labels, token_weights, tokens)  # type: ignore[no-untyped-call]
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        token_weights: Tensor | None,
        tokens: int,
    ) -> Tensor:
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        weight_sum = _Sum(weight, is_one=hidden.shape[0] <= tokens) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and for_bias else None
        for begin in range(0, hidden.shape[0], tokens):
            span = slice(begin, begin + tokens)
            part, label = hidden[span], labels[span, None]
            log_probs = torch.log_softmax(functional.linear(part, weight, bias), -1, dtype=torch.float32)
            losses = log_probs.gather(1, label).squeeze(1)
            total -= losses.sum() if token_weights is None else (losses * token_weights[span]).sum()
            if not (for_hidden or for_weight or for_bias):
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, label, grad.new_full((1, 1), -1.0).expand_as(label))
            if token_weights is not None:
                grad *= token_weights[span, None]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[span])
            if weight_sum is not None:
                weight_sum.add(grad.T, part)
        ctx.save_for_backward(grad_hidden, weight_sum and weight_sum.value(), grad_bias)
        ctx.dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # In place: these buffers are nobody else's, and a second backward pass is refused by autograd.
        hidden, weight, bias = (
            None if grad is None else grad.mul_(grad_output).to(ctx.dtype) for grad in ctx.saved_tensors
        )
        return hidden, weight, bias, None, None, None


class _Sum:
    """Products of chunks added up, in float32 if there are several: in bfloat16 every chunk would round the sum anew.

    Args:
        like: the parameter whose gradient this is.
        is_one: there is one chunk at most.
    """

    def __init__(self, like: Tensor, *, is_one: bool) -> None:
        self._like, self._is_one = like, is_one
        self._sum: Tensor | None = None

    def add(self, left: Tensor, right: Tensor) -> None:
        if self._sum is None:
            product = left @ right
            self._sum = product if self._is_one else product.float()
        elif left.dtype == torch.float32:
            self._sum.addmm_(left, right)
        else:
            self._sum += left @ right

    def value(self) -> Tensor:
        return torch.zeros_like(self._like) if self._sum is None else self._sum


class LossHead:
    """Lets a model's forward pass end in the loss: while an order is open, its output embedding returns the sum of
    cross entropies instead of logits.

    Inside the forward pass, because that is where sharding engines have the embedding's weight at hand.
    """

    def __init__(self, head: nn.Linear) -> None:
        self._head, self._plain = head, head.forward
        self._order: tuple[Tensor, Tensor, Tensor | None] | None = None
        head.forward = self._forward  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        """Give the model its own head back."""
        self._head.forward = self._plain  # type: ignore[method-assign]

    @contextmanager
    def order(self, places: Tensor, labels: Tensor, token_weights: Tensor | None) -> Iterator[None]:
        """Within this block the model's `.logits` is the loss.

        Args:
            places: which of the (B * L) tokens predict a target, (K,) int64.
            labels: what they predict, (K,) int64.
            token_weights: (K,) float32, or None for 1 each.
        """
        self._order = (places, labels, token_weights)
        try:
            yield
        finally:
            self._order = None

    def _forward(self, hidden: Tensor) -> Tensor:
        if self._order is None:
            return self._plain(hidden)
        places, labels, token_weights = self._order
        # The parameters are looked up here and not kept: engines put others in their place.
        return chunked_cross_entropy(
            hidden.flatten(0, -2)[places], self._head.weight, labels, bias=self._head.bias, token_weights=token_weights
        )


def attach_loss_head(model: Any) -> LossHead | None:
    """Put a LossHead on a model's output embedding; None where there is no plain linear one.

    Whether the model's loss is then right has to be tried: some models scale or cap their logits afterwards
    (`collate.choose_loss_head` tries).
    """
    head = model.get_output_embeddings()
    return LossHead(head) if type(head) is nn.Linear else None
