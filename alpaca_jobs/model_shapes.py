"""The shape of a decoder-only model: layers, widths, vocabulary; and what follows from it. Pure.

Where only a model's size is known, the shape is a published one of about that size, taken on the large side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

_GATED, _PLAIN = 3, 2

EMBEDDINGS = frozenset(("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings"))
"""What transformers' decoder-only models call their embeddings: Llama, OPT, Qwen; GPT-2; GPT-NeoX; Bloom, Falcon."""


@dataclass(frozen=True)
class ModelShape:
    """What config.json of a model says.

    Attributes:
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        feed_forward: width inside the feed-forward part; of one expert where there are several.
        num_heads, num_kv_heads: heads of the queries, and of the keys and values.
        vocab_size: rows of each embedding.
        head_size: None for hidden_size / num_heads.
        is_tied: whether the output embedding is the input's.
        is_gated: whether the feed-forward part has three matrices (SwiGLU), not two.
        num_experts, experts_per_token: feed-forward parts side by side in a layer, and through how many a token goes.
        dense_layers: of a model with experts, layers that have none.
        shared_feed_forward: width of one more, which every token goes through; 0: there is none.
        more_norms: widths of a layer's norms beside two of the hidden size, added up; a norm that keeps all in float32
            counts a third more.
        wide_copies: tensors of the feed-forward width that training keeps of a token; 4: the gate, what its activation
            gives, the other half, what the last product reads.
    """

    num_layers: int
    hidden_size: int
    feed_forward: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    head_size: int | None = None
    is_tied: bool = False
    is_gated: bool = True
    num_experts: int = 1
    experts_per_token: int = 1
    shared_feed_forward: int = 0
    dense_layers: int = 0
    more_norms: int = 0
    wide_copies: int = 4

    @property
    def query_size(self) -> int:
        """Width of all queries of a layer together."""
        return self.num_heads * (self.head_size or self.hidden_size // self.num_heads)

    @property
    def kv_size(self) -> int:
        """Width of all keys of a layer together; the values' is the same."""
        return self.num_kv_heads * (self.head_size or self.hidden_size // self.num_heads)

    @property
    def layer_parameters(self) -> int:
        """Matrices of one decoder layer, all experts; biases and norms, below a thousandth of it, are left out."""
        attention = 2 * self.hidden_size * (self.query_size + self.kv_size)
        router = self.hidden_size * self.num_experts if self.num_experts > 1 else 0
        wide = self.num_experts * self.feed_forward + self.shared_feed_forward
        return attention + router + self._matrices * self.hidden_size * wide

    @property
    def feed_forward_per_token(self) -> int:
        """Width that one token goes through in the feed-forward part, over all of its experts."""
        return self.experts_per_token * self.feed_forward + self.shared_feed_forward

    @property
    def idle_parameters(self) -> int:
        """Parameters of experts that a token does not go through, all layers; 0 without experts."""
        idle = self.num_experts - self.experts_per_token
        return (self.num_layers - self.dense_layers) * idle * self._matrices * self.hidden_size * self.feed_forward

    @property
    def _matrices(self) -> int:
        return _GATED if self.is_gated else _PLAIN

    @property
    def embedding_parameters(self) -> int:
        """Both embeddings; one where they are the same."""
        return (1 if self.is_tied else 2) * self.vocab_size * self.hidden_size

    def adapter_parameters(self, rank: int, target_modules: Iterable[str]) -> int:
        """Parameters of LoRA's adapters: rank x (in + out) for each adapted layer (arXiv:2106.09685, section 4.1).

        Args:
            target_modules: names of linear layers, of which one that is not known here counts as the widest, and of
                embeddings, which a model has once.
        """
        hidden, query, kv, wide = self.hidden_size, self.query_size, self.kv_size, self.feed_forward
        sizes = {
            **dict.fromkeys(("q_proj", "o_proj", "out_proj"), hidden + query),
            **dict.fromkeys(("k_proj", "v_proj"), hidden + kv),
            **dict.fromkeys(("query_key_value", "c_attn", "Wqkv", "wqkv"), hidden + query + 2 * kv),
        }
        names = set(target_modules)
        once = len(names & EMBEDDINGS) * (self.vocab_size + hidden)
        return rank * (self.num_layers * sum(sizes.get(name, hidden + wide) for name in names - EMBEDDINGS) + once)

    def with_words(self, count: int) -> ModelShape:
        """The shape with so many more words in its vocabulary."""
        return replace(self, vocab_size=self.vocab_size + count)


# (parameters in billions, layers, hidden size, heads), all with plain heads.
# Source: OPT, arXiv:2205.01068, table 1, up to 2.7 B; LLaMA, arXiv:2302.13971, table 2, above; GPT-3, arXiv:2005.14165,
# table 2.1, for the last.
_SIZES = (
    (0.125, 12, 768, 12),
    (0.35, 24, 1024, 16),
    (1.3, 24, 2048, 32),
    (2.7, 32, 2560, 32),
    (6.7, 32, 4096, 32),
    (13.0, 40, 5120, 40),
    (32.5, 60, 6656, 52),
    (65.2, 80, 8192, 64),
    (175.0, 96, 12288, 96),
)
_LARGE_VOCABULARY = 152_064  # of Qwen2.5, the largest among the models that are known by name


def shape_by_size(num_parameters: int) -> ModelShape:
    """The shape of a published model of about this size: the first in the table that is at most a quarter smaller.

    The feed-forward width is what makes the layers come to the number of parameters; the vocabulary is a large one.
    """
    billions = num_parameters / 1e9
    _, layers, hidden, heads = next((one for one in _SIZES if one[0] >= 0.8 * billions), _SIZES[-1])
    rest = max(num_parameters / layers - 4 * hidden**2, 0.0)
    feed_forward = max(math.ceil(rest / (_GATED * hidden)), 2 * hidden)
    return ModelShape(layers, hidden, feed_forward, heads, heads, _LARGE_VOCABULARY)
