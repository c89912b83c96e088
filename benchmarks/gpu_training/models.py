"""The models of training_gpu.py: shapes, their folders without weights, and the memory that training them takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training_data import tokenizer_folder

How = Literal["full", "lora", "padded"]


@dataclass(frozen=True)
class Shape:
    """A LLaMA by its sizes; heads are of 128 unless the model is tiny."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocab: int = 32_000

    @property
    def num_parameters(self) -> int:
        """All of them but the norms, which are thousands."""
        attention = 2 * self.hidden**2 * (1 + self.kv_heads / self.heads)
        return int(self.layers * (attention + 3 * self.hidden * self.feed_forward)) + 2 * self.vocab * self.hidden


SHAPES = {
    "0.4B": Shape(1024, 24, 8, 8, 2816),
    "1.3B": Shape(2048, 22, 16, 16, 5632),
    "3B": Shape(3072, 26, 24, 24, 8192),
    "7B-width, 8 layers": Shape(4096, 8, 32, 32, 11_008),
    "LLaMA-7B": Shape(4096, 32, 32, 32, 11_008),
    "Llama-3-8B": Shape(4096, 32, 32, 8, 14_336, 128_256),
}
"""The last two are real: LLaMA, arXiv:2302.13971, table 2, and Llama 3, arXiv:2407.21783, table 3. The 7B-width stack
has a quarter of LLaMA-7B's layers, so that its training state fits one GPU; the others are LLaMAs of those sizes."""
TINY = Shape(64, 2, 4, 2, 172, 2_000)


def write_shape(shape: Shape, folder: Path, *, with_weights: bool = False) -> None:
    """Put a model's configuration and a small tokenizer into a folder; weights are random, from seed 0."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    if with_weights:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    tokenizer_folder(folder)


def needed_bytes(shape: Shape, *, how: How, tokens: int) -> int:
    """GPU memory that training takes at its peak, roughly: what is asked before a model is made.

    A parameter takes 18 bytes in full training: 2 of bfloat16, and in float32 itself, its gradient and two moments
    (engines/replicated.py); a padded one as many (autocast's copy in bfloat16). Of a frozen base the peak is when it
    is made, 4 bytes. A token takes about 34 bytes per layer and hidden unit, doubled here for the wider feed-forward
    part, and its logits. Source of the 34: arXiv:2205.05198, section 4.1, without attention's scores.

    Args:
        tokens: of one forward pass, padding included.
    """
    activations = 68 * tokens * shape.layers * shape.hidden
    if how == "lora":
        return max(4 * shape.num_parameters, 2 * shape.num_parameters + activations) + 2 * 2**30
    logits = 8 * tokens * shape.vocab if how == "padded" else 0
    return 18 * shape.num_parameters + activations + logits + 2 * 2**30
