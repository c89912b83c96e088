"""The formulas for activations against what transformers' models really keep, built and called as training does."""

from __future__ import annotations

import json
import weakref
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from alpaca_jobs.config_shapes import size_by_config
from alpaca_jobs.model_shapes import ModelShape
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, reset_adapters
from alpaca_jobs.training.attention import row_borders, use_rows_attention
from alpaca_jobs.training.loss import attach_loss_head
from alpaca_jobs.training.model import _for_training
from cluster.price.activations import activation_bytes, kept_bytes_per_token

TOKENS = 64
SMALL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
EXPERTS = {"intermediate_size": 448, "num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": {**SMALL, "intermediate_size": 676, "num_key_value_heads": 1},
    "qwen3": {**SMALL, "head_dim": 64},  # as in Qwen3-0.6B queries are wider than the layers
    "mistral": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {**SMALL, **EXPERTS, "head_dim": 32},
    "gemma": {**SMALL, "intermediate_size": 1024, "head_dim": 32},
    "gemma3_text": {**SMALL, "intermediate_size": 768, "head_dim": 32},
    "olmo2": SMALL,
    "phi3": SMALL,
    "phi": {**SMALL, "intermediate_size": 512, "num_key_value_heads": 4},
    "gpt_neox": {**{key: value for key, value in SMALL.items() if key != "num_key_value_heads"},
                 "intermediate_size": 512},
    "opt": {"vocab_size": 512, "hidden_size": 128, "ffn_dim": 512, "num_attention_heads": 4,
            "word_embed_proj_dim": 128},
}  # fmt: skip
ADAPTED = {"gpt_neox": ["query_key_value"], "phi3": ["qkv_proj"]}


def kept_bytes(train: TrainSpec, kind: str, num_layers: int) -> tuple[int, ModelShape]:
    """Bytes that one forward pass of TOKENS tokens leaves for the backward pass, parameters aside; and the shape."""
    config = AutoConfig.for_model(kind, num_hidden_layers=num_layers, **FAMILIES[kind])
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if train.method == "lora":
        add_adapters(model, train)
        reset_adapters(model, 0)
    model = _for_training(model, train).to(getattr(torch, train.dtype))
    use_rows_attention(model)
    head = attach_loss_head(model)
    assert head is not None
    parameters = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}  # the tensor too: a freed place would be taken again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids, places = torch.arange(TOKENS), torch.arange(TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), head.order(places, ids, None):
        model(input_ids=ids[None], position_ids=places[None], use_cache=False, **row_borders([TOKENS]))
    found = size_by_config(json.loads(config.to_json_string()))
    assert found is not None
    return sum(size for size, _ in kept.values()), found.shape


def off(kind: str, **how: Any) -> float:
    """How far the formula for a layer is above what one keeps, as a share of it."""
    if how.get("method") == "lora" and kind in ADAPTED:
        how["lora"] = {"target_modules": ADAPTED[kind]}
    train = TrainSpec.model_validate({"model": "x", **how})
    (three, shape), (one, _) = kept_bytes(train, kind, 3), kept_bytes(train, kind, 1)
    return kept_bytes_per_token(train, shape) / ((three - one) / 2 / TOKENS) - 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "how",
    [{}, {"method": "lora"}, {"gradient_checkpointing": True}, {"method": "lora", "gradient_checkpointing": True}],
)
def test_a_layer_of_llama_keeps_what_the_formula_says(how: dict[str, Any], dtype: str) -> None:
    assert abs(off("llama", dtype=dtype, **how)) < 0.12


@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize("how", [{}, {"method": "lora"}])
def test_a_layer_of_any_family_keeps_no_more_than_15_percent_above_the_formula(kind: str, how: dict[str, Any]) -> None:
    assert -0.15 < off(kind, **how) < 0.25


class Live(TorchDispatchMode):
    """Bytes of all tensors that are alive at a time, whether they have memory or not."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {
            one.untyped_storage()._cdata: 0 for one in (*model.parameters(), *model.buffers())
        }  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if not isinstance(one, torch.Tensor) or one.untyped_storage()._cdata in self._seen:
                continue
            storage = one.untyped_storage()
            self._seen[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, storage: int) -> None:
        self.now -= self._seen.pop(storage, 0)


def attend_without_scores(query: Any, key: Any, value: Any, scale: float | None = None, **how: Any) -> Any:
    """What a GPU's flash attention keeps; without memory torch would choose one that keeps scores."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) if groups > 1 else one for one in (key, value))
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, 0.0, True, scale=scale)[0]


@pytest.mark.parametrize(
    ("how", "too_low", "too_high"),
    [
        ({}, 0.05, 0.05),
        ({"gradient_checkpointing": True}, 0.0, 0.35),
        ({"gradient_checkpointing": "selective"}, 0.05, 0.10),
        ({"method": "lora"}, 0.05, 0.05),
        ({"method": "lora", "gradient_checkpointing": True}, 0.0, 0.35),
    ],
)
def test_the_peak_of_llama_7b_is_what_the_formula_says(
    how: dict[str, Any], too_low: float, too_high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward pass of 2,048 tokens through all 32 layers, without memory; each gradient is dropped."""
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend_without_scores)
    train, tokens = TrainSpec.model_validate({"model": "x", **how}), 2048
    config = AutoConfig.for_model("llama", **LLAMA_7B)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if train.method == "lora":
        add_adapters(model, train)
    model = _for_training(model, train).to(torch.bfloat16).to("meta")
    use_rows_attention(model)
    for param in model.parameters():
        if param.requires_grad:
            param.register_post_accumulate_grad_hook(lambda param: setattr(param, "grad", None))
    places = torch.arange(tokens, device="meta")
    with Live(model) as live:
        given = {"input_ids": torch.zeros_like(places)[None], "position_ids": places[None]}
        out = model.get_decoder()(**given, use_cache=False, **row_borders([tokens]))
        out.last_hidden_state.sum().backward()
    found = size_by_config(json.loads(config.to_json_string()))
    assert found is not None
    assert -too_low < activation_bytes(train, found.shape, tokens) / live.peak - 1 < too_high
