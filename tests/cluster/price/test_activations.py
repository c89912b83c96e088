"""The formula for activations against what transformers' Llama really keeps, built and called as training does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alpaca_jobs.model_shapes import ModelShape
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, reset_adapters
from alpaca_jobs.training.attention import row_borders, use_rows_attention
from alpaca_jobs.training.loss import attach_loss_head
from alpaca_jobs.training.model import _for_training
from cluster.price.activations import kept_bytes_per_token

SHAPE = ModelShape(2, 128, 352, 4, 2, 512)
TOKENS = 64


def kept_bytes(train: TrainSpec, num_layers: int) -> int:
    """Bytes that one forward pass of TOKENS tokens leaves for the backward pass, parameters aside."""
    config = LlamaConfig(
        vocab_size=SHAPE.vocab_size, hidden_size=SHAPE.hidden_size, intermediate_size=SHAPE.feed_forward,
        num_hidden_layers=num_layers, num_attention_heads=SHAPE.num_heads, num_key_value_heads=SHAPE.num_kv_heads,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
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

    ids, places = torch.zeros((1, TOKENS), dtype=torch.int64), torch.arange(TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), head.order(places, ids[0], None):
        model(input_ids=ids, position_ids=places[None], use_cache=False, **row_borders([TOKENS]))
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "how",
    [{}, {"method": "lora"}, {"gradient_checkpointing": True}, {"method": "lora", "gradient_checkpointing": True}],
)
def test_a_layer_keeps_what_the_formula_says(how: dict[str, Any], dtype: str) -> None:
    train = TrainSpec.model_validate({"model": "x", "dtype": dtype, **how})
    a_layer = (kept_bytes(train, 3) - kept_bytes(train, 1)) / 2 / TOKENS
    assert a_layer == pytest.approx(kept_bytes_per_token(train, SHAPE), rel=0.12)
