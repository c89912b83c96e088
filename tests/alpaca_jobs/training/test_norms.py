"""Fused norms: the same model to rounding, and nothing but plain RMS norms is touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from alpaca_jobs.training.norms import fuse_norms

SHAPE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


def _model(name: str) -> Any:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SHAPE))
    for param in model.parameters():
        if param.ndim == 1:  # norms that are all ones would hide a weight in the wrong place
            nn.init.uniform_(param, 0.5, 1.5)
    return model


def _loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(1))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return float(loss.detach()), {name: one.grad.clone() for name, one in model.named_parameters()}


@pytest.mark.parametrize(("name", "norms"), [("Llama", 5), ("Qwen2", 5), ("Mistral", 5), ("Qwen3", 9)])
def test_a_model_is_the_same_to_rounding_with_gradients(name: str, norms: int) -> None:
    plain, fused = _model(name), _model(name)
    assert fuse_norms(fused) == norms, "two a layer and the last; Qwen 3 normalises queries and keys as well"
    loss, gradients = _loss_and_gradients(plain)
    found_loss, found = _loss_and_gradients(fused)
    assert found_loss == pytest.approx(loss, rel=1e-6)
    for one, wanted in gradients.items():
        torch.testing.assert_close(found[one], wanted, rtol=1e-4, atol=1e-6)


def test_in_bfloat16_it_is_no_further_from_float32_than_the_models_own() -> None:
    model = _model("Llama")
    exact = model.model.norm
    own = copy.deepcopy(exact).to(torch.bfloat16)
    fused = copy.deepcopy(own)
    fuse_norms(fused)
    hidden = (torch.randn(200, 32, generator=torch.Generator().manual_seed(2)) * 3).to(torch.bfloat16)
    exact.weight.data = own.weight.data.float()
    wanted = exact(hidden.float())
    off, off_fused = ((one(hidden).float() - wanted).abs().mean() for one in (own, fused))
    assert off_fused <= off


def test_an_engine_that_puts_shards_in_their_place_computes_with_whole_weights(one_rank: None) -> None:
    from alpaca_jobs.spec import TrainSpec
    from alpaca_jobs.training.engines.fsdp import Fsdp

    found = []
    for is_fused in (False, True):
        model = _model("Llama")
        if is_fused:
            fuse_norms(model)
        engine = Fsdp(model, TrainSpec(model="m", dtype="bfloat16"), device=torch.device("cpu"), ranks_per_node=1)
        found.append(_loss_and_gradients(engine.model))
    (loss, gradients), (fused_loss, fused) = found
    assert fused_loss == pytest.approx(loss, rel=1e-2)
    assert all(fused[name].full_tensor().any() for name in gradients if "norm" in name)


@pytest.mark.parametrize("name", ["Gemma", "Gemma2"])
def test_a_norm_of_another_formula_keeps_it(name: str) -> None:
    """Gemma's weights are added to one."""
    model = _model(name)
    before = _loss_and_gradients(model)[0]
    assert fuse_norms(model) == 0
    model.zero_grad()
    assert _loss_and_gradients(model)[0] == before


class OddRMSNorm(nn.Module):
    """Called so, with a bias; or with an input of its own."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
        self.eps = 1e-6
        if bias:
            self.bias = nn.Parameter(torch.ones(8))

    def forward(self, hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return hidden * gate


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_only_called_so_is_left_alone(bias: bool) -> None:
    assert fuse_norms(OddRMSNorm(bias=bias)) == 0


def test_norms_without_memory_are_fused_and_take_what_they_are_given() -> None:
    wanted = _model("Llama")
    model = copy.deepcopy(wanted).to("meta")
    assert fuse_norms(model) == 5
    model.to_empty(device="cpu")
    model.load_state_dict(wanted.state_dict())
    for (_, one), (_, other) in zip(model.named_buffers(), wanted.named_buffers(), strict=True):
        one.copy_(other)
    assert _loss_and_gradients(model)[0] == pytest.approx(_loss_and_gradients(wanted)[0], rel=1e-6)
