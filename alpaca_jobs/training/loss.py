"""Cross entropy of the target tokens, chunk by chunk against the output embedding: the logits of a batch never exist.

Shapes: T = tokens of the micro batch, K = its target tokens, H = hidden size, V = vocabulary.

The gradient of a cross entropy is known as soon as its logits are: softmax minus one-hot. So each chunk's share of the
gradients is made right after its logits, which are then dropped; the backward pass only scales what is there. That is
the same three matrix products as with all logits at once, with (chunk, V) in memory instead of (K, V) three times over.
Source of the idea: Liger kernels' fused linear cross entropy, arXiv:2410.10989, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK_ELEMENTS = 2**23
"""Logits of one chunk: 32 MiB of float32, which is 262 tokens of a vocabulary of 32,000."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    token_weights: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Sum over tokens of (token weight times) the cross entropy of `hidden @ weight.T + bias`, float32 scalar.

    Arithmetic is that of the plain way: products in the type of `hidden`, softmax in float32.

    Args:
        hidden: (K, H); K may be 0, which gives 0 with zero gradients.
        weight: the output embedding, (V, H).
        labels: (K,) int64.
        bias: (V,) or None.
        token_weights: (K,) float32; None means 1 each.
    """
    tokens = max(1, chunk_elements // weight.shape[0])
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
        # Chunks add up in float32: in bfloat16 every chunk would round the sum anew.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and for_bias else None
        for begin in range(0, hidden.shape[0], tokens):
            span = slice(begin, begin + tokens)
            part, label = hidden[span], labels[span, None]
            logits = functional.linear(part, weight, bias).float()
            norm = logits.logsumexp(-1, keepdim=True)
            losses = (norm - logits.gather(1, label)).squeeze(1)
            total += losses.sum() if token_weights is None else (losses * token_weights[span]).sum()
            if not (for_hidden or for_weight or for_bias):
                continue
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, label, grad.new_full((1, 1), -1.0).expand_as(label))
            if token_weights is not None:
                grad *= token_weights[span, None]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[span])
            if grad_weight is not None:
                if weight.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, part)
                else:
                    grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
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
