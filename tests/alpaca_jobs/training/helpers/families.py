"""Decoder-only families, each as a tiny random model: a test helper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alpaca_jobs.training.collate import Layout
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer, write_folder

ROPE = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, tuple[Layout, dict[str, Any]]] = {
    "llama": (Layout.POSITIONS, ROPE),
    "internlm": (Layout.POSITIONS, {**ROPE, "attention_bias": True}),
    "qwen2": (Layout.POSITIONS, ROPE),
    "qwen3": (Layout.POSITIONS, {**ROPE, "head_dim": 8}),
    "mistral": (Layout.POSITIONS, {**ROPE, "sliding_window": 16}),
    "mixtral": (Layout.POSITIONS, {**ROPE, "num_local_experts": 4}),
    "gemma2": (Layout.POSITIONS, {**ROPE, "head_dim": 8, "sliding_window": 16}),
    "phi3": (Layout.POSITIONS, ROPE),
    "gpt_neox": (Layout.POSITIONS, {key: value for key, value in ROPE.items() if key != "num_key_value_heads"}),
    "gpt2": (
        Layout.POSITIONS,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "opt": (
        Layout.BLOCK_MASK,
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32},
    ),
    "falcon": (Layout.BLOCK_MASK, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "bloom": (Layout.PADDED, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": (Layout.PADDED, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}


TYPES = {"internlm": "llama"}
"""InternLM-7B is LLaMA with biases in its attention, and is trained as a checkpoint of LLaMA's classes: the code that
its own folder brings is not run."""

CUT_OUT = {"llama", "internlm", "qwen2", "qwen3", "mistral", "mixtral", "phi3", "gpt_neox", "gpt2", "opt"}
"""Families whose attention can be replaced by one that takes rows apart; the masked layouts serve the others."""

ADAPTED = {
    "llama": ["q_proj", "v_proj"], "internlm": ["q_proj", "o_proj"], "qwen2": ["q_proj", "v_proj"],
    "mixtral": ["q_proj", "o_proj"], "gpt2": ["c_attn"], "gpt_neox": ["query_key_value"], "opt": ["q_proj", "fc1"],
}  # fmt: skip


def random_model(family: str, tokenizer: RowTokenizer, *, vocab_size: int | None = None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    kind = TYPES.get(family, family)
    config = AutoConfig.for_model(kind, vocab_size=vocab_size or tokenizer.vocab_size, **FAMILIES[family][1])
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def tiny_llama(folder: Path, files: Mapping[str, bytes], **changes: Any) -> Path:
    """A random LLaMA of two layers with its tokenizer, as from_pretrained wants them; `changes` to its config."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = {
        "vocab_size": load_tokenizer(files).vocab_size, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, **changes,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    write_folder(files, folder)
    return folder
