"""Parameters counted from config.json against those of the model that transformers makes of it, without memory."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from alpaca_jobs.config_shapes import FAMILIES, linear_layers, size_by_config
from alpaca_jobs.known_models import KNOWN_MODELS, size_of
from alpaca_jobs.model_shapes import EMBEDDINGS

WIDTHS = {
    "vocab_size": 1000, "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN = {key: value for key, value in WIDTHS.items() if key != "num_key_value_heads"}
OPT = {**{key: value for key, value in PLAIN.items() if key != "intermediate_size"}, "ffn_dim": 160,
       "word_embed_proj_dim": 96}  # fmt: skip
QWEN_MOE = {**WIDTHS, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", WIDTHS),
    ("llama", {**WIDTHS, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {**WIDTHS, "head_dim": 32}),
    ("mixtral", {**WIDTHS, "num_local_experts": 8, "num_experts_per_tok": 2}),
    ("qwen2", WIDTHS),
    ("qwen2", {**WIDTHS, "tie_word_embeddings": True}),
    ("qwen2_moe", {**QWEN_MOE, "shared_expert_intermediate_size": 72}),
    ("qwen3", {**WIDTHS, "head_dim": 24}),
    ("qwen3", {**WIDTHS, "head_dim": 24, "attention_bias": True}),
    ("qwen3_moe", {**QWEN_MOE, "head_dim": 24}),
    ("gemma", {**WIDTHS, "head_dim": 24}),
    ("gemma2", {**WIDTHS, "head_dim": 24}),
    ("gemma3_text", {**WIDTHS, "head_dim": 24}),
    ("phi", PLAIN),
    ("phi3", WIDTHS),
    ("granite", WIDTHS),
    ("smollm3", WIDTHS),
    ("olmo", WIDTHS),
    ("olmo2", WIDTHS),
    ("gpt_neox", PLAIN),
    ("opt", OPT),
    ("opt", {**OPT, "word_embed_proj_dim": 48, "do_layer_norm_before": False}),
    ("gpt2", {"vocab_size": 1000, "n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 128}),
    ("gpt2", {"vocab_size": 1000, "n_embd": 96, "n_layer": 3, "n_head": 6, "n_positions": 128, "n_inner": 120}),
]


def make(kind: str, config: dict[str, Any]) -> Any:
    """The model that transformers makes, without memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))


def parameters(kind: str, config: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What transformers counts, and the config.json that it writes of the same."""
    model = make(kind, config)
    made = model.config
    return sum(param.numel() for param in model.parameters()), json.loads(made.to_json_string())


@pytest.mark.parametrize(("kind", "config"), CASES, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(CASES)])
def test_every_parameter_is_counted_as_transformers_makes_it(kind: str, config: dict[str, Any]) -> None:
    counted, written = parameters(kind, config)
    for told in (written, {"model_type": kind, **config}):  # all defaults written out, and none of them
        found = size_by_config(told)
        assert found is not None
        assert (found.num_parameters, found.guess) == (counted, "")


@pytest.mark.parametrize(("kind", "config"), {kind: (kind, config) for kind, config in CASES}.values())
def test_the_layers_that_adapters_may_be_put_beside_are_those_that_transformers_makes(
    kind: str, config: dict[str, Any]
) -> None:
    found = {
        name.rpartition(".")[2]
        for name, module in make(kind, config).named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name.rpartition(".")[2] not in EMBEDDINGS
    }
    assert found - {"project_in", "project_out"} == set(linear_layers({"model_type": kind}))


def test_every_family_is_compared_but_those_that_transformers_does_not_know() -> None:
    assert set(FAMILIES) - {kind for kind, _ in CASES} == {"internlm", "internlm2"}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("internlm/internlm-7b", {"model_type": "internlm", "bias": True, "num_key_value_heads": 32,
                                  "intermediate_size": 11008, "vocab_size": 103168}),
        ("internlm/internlm2_5-7b", {"model_type": "internlm2", "bias": False, "num_key_value_heads": 8,
                                     "intermediate_size": 14336, "vocab_size": 92544}),
    ],
)  # fmt: skip
def test_internlm_is_counted_as_published(name: str, config: dict[str, Any]) -> None:
    found = size_by_config({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, **config})
    assert found == size_of(name)


def test_of_a_mixture_all_experts_are_kept_and_two_are_computed(mixtral: dict[str, Any]) -> None:
    found = size_by_config(mixtral)
    assert found is not None
    assert (found.num_parameters, found.active_parameters) == (46_702_792_704, 12_879_925_248)
    assert found.shape.feed_forward_per_token == 2 * 14336


def test_layers_without_experts_leave_none_idle() -> None:
    """DeepSeek-V3: 671 B parameters, 37 B for each token (arXiv:2412.19437, abstract); its attention is another one."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_attention_heads": 128, "vocab_size": 129280, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
    }  # fmt: skip
    found = size_by_config(config, stored=671 * 10**9)
    assert found is not None
    assert found.active_parameters / 1e9 == pytest.approx(37, rel=0.05)


def test_a_family_that_is_not_listed_goes_by_its_files_or_is_said_to_be_a_guess() -> None:
    config = {**WIDTHS, "model_type": "newer"}
    guessed, counted = size_by_config(config), size_by_config(config, stored=700_000)
    assert guessed is not None
    assert counted is not None
    assert "counted as that of a LLaMA of its widths: model_type newer is not listed here" in guessed.guess
    assert (counted.num_parameters, counted.guess) == (700_000, "")
    assert size_by_config({"model_type": "llama"}) is None


def test_the_models_known_by_name_have_no_experts_idle() -> None:
    assert all(size_of(name).active_parameters == one.num_parameters for name, one in KNOWN_MODELS.items())  # type: ignore[union-attr]
