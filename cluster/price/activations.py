"""What a forward pass leaves in a GPU's memory for the backward pass, and what the loss takes. Pure.

For each token and decoder layer, with h the hidden size, q and kv the widths of the queries and of the keys, f the
feed-forward width that the token goes through, n the widths of further norms (of queries and keys, of what a part
gives), e the experts it goes through (0 where there is one way for all) and d bytes a number:

    all trained        8h + (4 + d) n + d (4h + 2q + 2kv + 4f + 2eh)
    adapters alone     8h + 4n + d (2q + 2kv + 3f + 2eh) + (d + 1) x inputs of the adapted layers
    selective          d (3h + 2q + 2kv + 2f + eh)
    checkpointed       d h, and one layer as in the first two while it is computed again

A model with LayerNorm and no gate (OPT, GPT-NeoX) has no 8h, and 2f, or 5f with GELU as GPT-2 has it, in place of 4f.
8h: both norms work in float32 (fused ones do not, alpaca_jobs/training/norms.py; but not every norm can be fused).
d 4h: what the norms give and what the products read, for the gradients of weights. q and kv: flash attention keeps
queries, keys, values and its result, but no scores. f: the gate, its activation, the other half, and what the last
product reads. 2eh: what goes to the experts and what comes back. Source: what transformers' models hand to autograd,
counted with torch.autograd.graph.saved_tensors_hooks (tests/cluster/price/test_activations.py); the way of counting is
that of Korthikanti et al., arXiv:2205.05198, section 4.1.
"""

from __future__ import annotations

from alpaca_jobs.model_shapes import EMBEDDINGS, ModelShape
from alpaca_jobs.spec import TrainSpec

CHUNK_ELEMENTS = 2**26
"""Logits of one chunk of the loss on a GPU: alpaca_jobs/training/loss.py, which imports torch, so is not imported here.
"""
_PLAIN_BYTES = 4 + 4 + 4  # logits in float32, the softmax, its gradient
_FLOAT32 = 4


def dtype_bytes(train: TrainSpec) -> int:
    """Bytes of one number of the forward pass."""
    return 2 if train.dtype == "bfloat16" else _FLOAT32


def layer_bytes_per_token(train: TrainSpec, shape: ModelShape) -> float:
    """What one decoder layer keeps of one token when nothing is computed again."""
    hidden, wide, size = shape.hidden_size, shape.feed_forward_per_token, dtype_bytes(train)
    norms = (2 * _FLOAT32 * hidden if shape.is_gated else 0) + _FLOAT32 * shape.more_norms
    within = 2 * shape.query_size + 2 * shape.kv_size + 2 * routed_experts(shape) * hidden
    if train.lora is not None:
        adapted = set(train.lora.target_modules) - EMBEDDINGS
        read = sum(wide if name in ("down_proj", "fc2") else hidden for name in adapted)
        copies = max(shape.wide_copies - 1, 2)
        plain = 0 if shape.is_gated else 2 * size * hidden  # what LayerNorm reads
        return norms + plain + size * (within + copies * wide) + (size + 1) * read
    return norms + size * (4 * hidden + shape.more_norms + within + shape.wide_copies * wide)


def routed_experts(shape: ModelShape) -> int:
    """Experts that a token is sent to and comes back from; 0 where all tokens go the same way."""
    return shape.experts_per_token if shape.num_experts > 1 else 0


def kept_bytes_per_token(train: TrainSpec, shape: ModelShape) -> float:
    """What one decoder layer keeps of one token from its forward to its backward pass."""
    size = dtype_bytes(train)
    match train.gradient_checkpointing:
        case True:
            return size * shape.hidden_size
        case "selective":
            products = 2 * shape.hidden_size + 2 * shape.query_size + 2 * shape.kv_size
            products += 2 * shape.feed_forward_per_token + routed_experts(shape) * shape.hidden_size
            return size * (shape.hidden_size + products)
        case _:
            return layer_bytes_per_token(train, shape)


def activation_bytes(train: TrainSpec, shape: ModelShape, tokens: float) -> float:
    """The most that one GPU holds beside its state while a micro batch goes through it.

    The kept parts of all layers, one layer whole for the backward pass (its own parts computed again, and as much again
    for their gradients), and the residual stream around the layers.

    Args:
        tokens: of the micro batch.
    """
    layers = shape.num_layers * kept_bytes_per_token(train, shape)
    one = layer_bytes_per_token(train, shape) * (1 if train.gradient_checkpointing is False else 2)
    around = (3 * dtype_bytes(train) + _FLOAT32) * shape.hidden_size  # embedding, last norm, its input and gradient
    mask = dtype_bytes(train) * tokens if train.attention == "mask" else 0.0
    return tokens * (layers + one + around + mask)


def loss_bytes(train: TrainSpec, shape: ModelShape, tokens: float) -> float:
    """What the cross entropy takes: one chunk of logits, or all of a micro batch; and the output embedding's gradient,
    which adds up in float32 where that embedding is trained (alpaca_jobs/training/loss.py).
    """
    head = shape.vocab_size * shape.hidden_size
    gradient = (_FLOAT32 + dtype_bytes(train)) * head if train.lora is None or train.trains_embeddings else 0
    if train.cross_entropy == "plain":
        return tokens * shape.vocab_size * _PLAIN_BYTES + gradient
    chunk = _FLOAT32 + dtype_bytes(train)  # the softmax, and logits or their gradient in the model's type
    return min(CHUNK_ELEMENTS, tokens * shape.vocab_size) * chunk + gradient
