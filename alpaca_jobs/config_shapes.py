"""How large a model is, read from its config.json: layers, widths and every parameter of the families listed. Pure.

The count is what transformers makes of the same configuration; a test builds each family without memory and compares.
A family that is not listed is counted as a LLaMA of the same widths, and that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from alpaca_jobs.known_models import SizedModel
from alpaca_jobs.model_shapes import ModelShape

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LINEAR = (*_ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Family:
    """What a family has beside the matrices of attention and feed-forward part.

    Attributes:
        biases: linear layers of the attention with a bias whatever the configuration says: qkv or qkvo.
        bias_key: the key that gives all four a bias.
        is_gated: three feed-forward matrices, not two; has_mlp_biases: each with a bias.
        num_norms: of hidden size in a layer; has_norm_biases: each with a bias, the last norm's too;
            has_wide_norms: all they keep for the backward pass is float32.
        qk_norms: norms of queries and keys: one head wide (head), as wide as all heads (all), or none.
        has_last_norm: after the last layer.
        is_tied: what holds where tie_word_embeddings is left out.
        default_head: width of a head where head_dim is left out; 0: hidden size / heads.
        positions: learned ones, so many more than max_position_embeddings; None: none are learned.
        has_head_bias: whether the output embedding has one.
        linear: names of the linear layers within a layer, which LoRA can adapt; empty where they are not known.
    """

    biases: str = ""
    bias_key: str = "attention_bias"
    is_gated: bool = True
    has_mlp_biases: bool = False
    num_norms: int = 2
    has_norm_biases: bool = False
    has_wide_norms: bool = False
    qk_norms: str = ""
    has_last_norm: bool = True
    is_tied: bool = False
    default_head: int = 0
    positions: int | None = None
    has_head_bias: bool = False
    linear: tuple[str, ...] = _LINEAR


_PLAIN = _Family(biases="qkvo", is_gated=False, has_mlp_biases=True, has_norm_biases=True)
# Source: the modules that transformers 5.17 builds for each model_type (models/*/modeling_*.py).
FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(),
    "internlm": _Family(bias_key="bias"),
    "internlm2": _Family(bias_key="bias", linear=()),
    "mistral": _Family(),
    "mixtral": _Family(linear=_ATTENTION),
    "qwen2": _Family(biases="qkv"),
    "qwen2_moe": _Family(biases="qkv", linear=(*_LINEAR, "shared_expert_gate")),
    "qwen3": _Family(qk_norms="head"),
    "qwen3_moe": _Family(qk_norms="head", linear=_ATTENTION),
    "gemma": _Family(is_tied=True, default_head=256, has_wide_norms=True),
    "gemma2": _Family(is_tied=True, default_head=256, num_norms=4, has_wide_norms=True),
    "gemma3_text": _Family(is_tied=True, default_head=256, num_norms=4, qk_norms="head", has_wide_norms=True),
    "phi3": _Family(linear=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "granite": _Family(),
    "smollm3": _Family(is_tied=True),
    "olmo": _Family(num_norms=0, has_last_norm=False),
    "olmo2": _Family(qk_norms="all", has_wide_norms=True),
    "phi": replace(
        _PLAIN, num_norms=1, has_head_bias=True, linear=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
    ),
    "gpt_neox": replace(_PLAIN, linear=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
    "opt": replace(_PLAIN, is_tied=True, positions=2, linear=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "gpt2": replace(_PLAIN, is_tied=True, positions=0, linear=("c_attn", "c_proj", "c_fc")),
}
_OTHER_NAMES = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
                "max_position_embeddings": "n_positions"}  # fmt: skip
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PLAIN_COPIES = {"gelu_new": 5, "gelu_fast": 5}
"""Tensors of the feed-forward width that is not gated, where its activation is made of several operations."""
_TIMES_HIDDEN = 4  # the feed-forward width where none is stated: GPT-2


def linear_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a model's linear layers, as LoRA's target_modules has them; empty where they are not known here."""
    family = FAMILIES.get(str(config.get("model_type") or ""))
    return () if family is None else family.linear


def size_by_config(config: Mapping[str, Any], *, stored: int | None = None) -> SizedModel | None:
    """A model's size and shape by its configuration; None where that does not tell its widths.

    Args:
        config: config.json of a decoder-only model.
        stored: parameters that its files hold, where they were counted; taken for families that are not listed.
    """
    told = _Told(config)
    shape = _shape(told)
    if shape is None:
        return None
    family = FAMILIES.get(told.kind)
    if family is not None and not shape.dense_layers:
        return SizedModel(_count(told, family, shape), shape)
    if stored is not None:
        return SizedModel(stored, shape)
    words = f"its size is counted as that of a LLaMA of its widths: model_type {told.kind or 'none'} is not listed here"
    return SizedModel(_count(told, _Family(), shape), shape, words)


@dataclass(frozen=True)
class _Told:
    """A configuration, asked for numbers that may stand under older names."""

    config: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return str(self.config.get("model_type") or "")

    def number(self, *names: str) -> int:
        """The first of these that is a positive whole number; 0 where none is."""
        for name in (*names, *(_OTHER_NAMES[name] for name in names if name in _OTHER_NAMES)):
            value = self.config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return 0

    def says(self, name: str, *, default: bool = False) -> bool:
        value = self.config.get(name)
        return value if isinstance(value, bool) else default


def _shape(told: _Told) -> ModelShape | None:
    hidden, layers = told.number("hidden_size"), told.number("num_hidden_layers")
    heads, words = told.number("num_attention_heads"), told.number("vocab_size")
    if not (hidden and layers and heads and words):
        return None
    family = FAMILIES.get(told.kind, _Family())
    experts = told.number(*_EXPERTS) or 1
    wide = told.number("moe_intermediate_size") if experts > 1 else 0
    shape = ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        feed_forward=wide or told.number("intermediate_size", "ffn_dim", "n_inner") or _TIMES_HIDDEN * hidden,
        num_heads=heads,
        num_kv_heads=told.number("num_key_value_heads") or heads,
        vocab_size=words,
        head_size=told.number("head_dim") or family.default_head or None,
        is_tied=told.says("tie_word_embeddings", default=family.is_tied),
        is_gated=family.is_gated,
        num_experts=experts,
        experts_per_token=min(told.number("num_experts_per_tok", "moe_topk") or experts, experts),
        shared_feed_forward=told.number("shared_expert_intermediate_size") or told.number("n_shared_experts") * wide
        if experts > 1
        else 0,
        dense_layers=_dense_layers(told, layers) if experts > 1 else 0,
        wide_copies=4 if family.is_gated else _PLAIN_COPIES.get(_activation(told), 2),
    )
    return replace(shape, more_norms=_more_norms(family, shape))


def _activation(told: _Told) -> str:
    default = "gelu_new" if told.kind == "gpt2" else ""
    return next(
        (str(told.config[name]) for name in ("activation_function", "hidden_act") if name in told.config), default
    )


def _more_norms(family: _Family, shape: ModelShape) -> int:
    if family.has_norm_biases:
        return 0  # of LayerNorm, whose inputs and results are counted with what the products read
    heads = shape.query_size + shape.kv_size if family.qk_norms else 0
    more = max(family.num_norms - 2, 0) * shape.hidden_size + heads
    return more + (2 * shape.hidden_size + more) // 3 if family.has_wide_norms else more


def _dense_layers(told: _Told, layers: int) -> int:
    """Layers of a mixture that have no experts: the first ones (DeepSeek), some, or all but every n-th (Qwen)."""
    named = told.config.get("mlp_only_layers")
    step = told.number("decoder_sparse_step") or 1
    first = told.number("first_k_dense_replace")
    return min(max(first, layers - layers // step, len(named) if isinstance(named, list) else 0), layers)


def _count(told: _Told, family: _Family, shape: ModelShape) -> int:
    """All parameters, biases and norms included."""
    hidden = shape.hidden_size
    a_norm = (2 if family.has_norm_biases else 1) * hidden
    has_last = family.has_last_norm and told.says("do_layer_norm_before", default=True)
    total = shape.num_layers * (shape.layer_parameters + _small(told, family, shape)) + (a_norm if has_last else 0)
    narrow = told.number("word_embed_proj_dim")  # OPT-350M: embeddings narrower than the layers, and a way in and out
    if narrow and narrow != hidden:
        total += (1 if shape.is_tied else 2) * shape.vocab_size * narrow + 2 * narrow * hidden
    else:
        total += shape.embedding_parameters
    if family.positions is not None:
        total += (told.number("max_position_embeddings") + family.positions) * hidden
    return total + (shape.vocab_size if family.has_head_bias else 0)


def _small(told: _Told, family: _Family, shape: ModelShape) -> int:
    """Biases and norms of a layer."""
    hidden, query, kv = shape.hidden_size, shape.query_size, shape.kv_size
    biases = "qkvo" if told.says(family.bias_key) else family.biases
    small = sum({"q": query, "k": kv, "v": kv, "o": hidden}[one] for one in biases)
    if family.has_mlp_biases or told.says("mlp_bias"):
        small += (2 if shape.is_gated else 1) * shape.feed_forward + hidden
    if shape.shared_feed_forward:
        small += hidden  # what weighs the shared expert
    small += {"head": 2 * query // shape.num_heads, "all": query + kv, "": 0}[family.qk_norms]
    return small + family.num_norms * (2 if family.has_norm_biases else 1) * hidden
