"""The chunked loss is the plain one: value and every gradient, with weights, biases, odd chunks and nothing at all."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from alpaca_jobs.training.loss import chunked_cross_entropy

HIDDEN, VOCABULARY = 16, 50


def _inputs(number: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    hidden = torch.randn(number, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).to(dtype)
    bias = torch.randn(VOCABULARY, generator=generator).to(dtype)
    labels = torch.randint(VOCABULARY, (number,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), labels


@pytest.mark.parametrize("chunk_tokens", [1, 7, 23, 1000])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_value_and_gradients_are_those_of_all_logits_at_once(
    chunk_tokens: int, is_weighted: bool, has_bias: bool
) -> None:
    hidden, weight, bias, labels = _inputs(23)
    weights = torch.rand(23, generator=torch.Generator().manual_seed(1)) if is_weighted else None
    leaves = [hidden, weight, *([bias] if has_bias else [])]
    each = functional.cross_entropy(
        functional.linear(hidden, weight, bias if has_bias else None), labels, reduction="none"
    )
    plain = each.sum() if weights is None else (each * weights).sum()
    ours = chunked_cross_entropy(
        hidden,
        weight,
        labels,
        bias=bias if has_bias else None,
        token_weights=weights,
        chunk_elements=chunk_tokens * VOCABULARY,
    )
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    theirs = torch.autograd.grad(plain * 0.3, leaves)
    mine = torch.autograd.grad(ours * 0.3, leaves)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_in_bfloat16_gradients_agree_to_its_rounding_however_small_the_chunks() -> None:
    hidden, weight, _, labels = _inputs(64, torch.bfloat16)
    plain = functional.cross_entropy(functional.linear(hidden, weight).float(), labels, reduction="sum")
    ours = chunked_cross_entropy(hidden, weight, labels, chunk_elements=4 * VOCABULARY)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-6)
    theirs, mine = torch.autograd.grad(plain, [hidden, weight]), torch.autograd.grad(ours, [hidden, weight])
    for one, other in zip(mine, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)


def test_no_target_gives_no_loss_and_zero_gradients() -> None:
    hidden, weight, _, labels = _inputs(0)
    loss = chunked_cross_entropy(hidden, weight, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert weight.grad is not None
    assert not weight.grad.any()


def test_a_frozen_embedding_gets_no_gradient_and_costs_none() -> None:
    """As with LoRA: only the hidden states' gradient is made."""
    hidden, weight, _, labels = _inputs(9)
    frozen = weight.detach()
    loss = chunked_cross_entropy(hidden, frozen, labels)
    (mine,) = torch.autograd.grad(loss, [hidden])
    (theirs,) = torch.autograd.grad(
        functional.cross_entropy(functional.linear(hidden, frozen), labels, reduction="sum"), [hidden]
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_without_gradients_only_the_value_is_made() -> None:
    hidden, weight, _, labels = _inputs(9)
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad


def test_the_same_input_gives_the_same_bits() -> None:
    def bits() -> list[bytes]:
        hidden, weight, _, labels = _inputs(23)
        loss = chunked_cross_entropy(hidden, weight, labels, chunk_elements=5 * VOCABULARY)
        return [t.detach().numpy().tobytes() for t in (loss, *torch.autograd.grad(loss, [hidden, weight]))]

    assert bits() == bits()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_keeps_its_gradient_in_the_weights_type_and_several_add_up_in_float32(dtype: torch.dtype) -> None:
    hidden, weight, _, labels = _inputs(20, dtype)
    for tokens, kept in ((20, dtype), (19, torch.float32)):
        loss = chunked_cross_entropy(hidden, weight, labels, chunk_elements=tokens * VOCABULARY)
        assert loss.grad_fn is not None
        assert loss.grad_fn.saved_tensors[1].dtype == kept  # type: ignore[attr-defined]


def test_chunks_are_even(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = functional.linear

    def linear(*args: torch.Tensor | None) -> torch.Tensor:
        assert args[0] is not None
        sizes.append(len(args[0]))
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(functional, "linear", linear)
    hidden, weight, _, labels = _inputs(21)
    chunked_cross_entropy(hidden, weight, labels, chunk_elements=20 * VOCABULARY)
    assert sizes == [11, 10]
