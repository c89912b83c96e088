"""What a training step's operators would take on a GPU if each ran at its limit. Needs no GPU, and measures nothing.

    python benchmarks/gpu_roofline.py                    # eight layers of LLaMA-7B's width, on an H100
    python benchmarks/gpu_roofline.py --gpu "NVIDIA A100" --shape LLaMA-7B --method lora --top 20

One forward and backward pass of 16 rows of Alpaca's lengths runs on torch's meta device, on the path that a GPU takes,
and every operator that is called is counted: the bytes of the tensors it reads and writes, and the FLOPs of matrix
products. An operator takes the longer of bytes / bandwidth and FLOPs / rate (Williams et al., "Roofline", CACM 52(4),
2009). What is left out makes a real step slower: launching, caches that miss, waits. So the MFU printed is one that no
step can exceed, and the shares tell what is worth changing. training_gpu.py is what measures.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout; Python puts this file's folder alone

import torch
from gpu_training.models import SHAPES, Shape
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from training_data import alpaca_lengths

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training import attention, loss, norms
from alpaca_jobs.training.adapters import add_adapters
from alpaca_jobs.training.collate import Layout, MicroBatch, lay_out, target_loss
from alpaca_jobs.training.flops import model_flops, peak_bf16_flops
from alpaca_jobs.training.model import matrix_parameters

BYTES_PER_S = {"NVIDIA A100": 2.04e12, "NVIDIA H100": 3.35e12, "NVIDIA H200": 4.8e12}
"""Memory bandwidth of the 80 GB A100 SXM, the H100 SXM and the H200. Source: NVIDIA's data sheets (read 2026-11)."""
PRODUCTS_REACH, MEMORY_REACHES = 0.8, 0.9
"""Assumed: what large matrix products reach of the peak, and streams of the bandwidth, at the very best."""
ROWS, GPUS = 16, 8
UPDATE_BYTES = 4 + 28 + 6
"""For each trained parameter of this GPU's eighth: the gradient's norm, AdamW (four read, three written), the copy in
bfloat16."""
FREE = {"aten.detach", "aten._unsafe_view", "aten.alias", "aten.empty_like", "aten.expand"}


class Counting(TorchDispatchMode):
    """Seconds by operator, at the roofline; `model_flops` is what MFU counts of them."""

    def __init__(self, gpu: str) -> None:
        super().__init__()
        peak = peak_bf16_flops(gpu)
        assert peak is not None
        self.peak, self._rate, self._bandwidth = peak, peak * PRODUCTS_REACH, BYTES_PER_S[gpu] * MEMORY_REACHES
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.model_flops = 0.0

    def add(self, name: str, *, tensors: list[Tensor], flops: float = 0.0) -> None:
        """One call of an operator that reads and writes these."""
        num_bytes = sum(one.numel() * one.element_size() for one in tensors)
        self.seconds[name] += max(flops / self._rate, num_bytes / self._bandwidth)
        self.calls[name] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = str(func.overloadpacket) if hasattr(func, "overloadpacket") else str(func)
        if func.is_view or name in FREE:
            return out
        counted = flop_registry.get(func._overloadpacket)
        is_product = counted is not None and "varlen" not in name  # rows are short: bytes decide there
        flops = counted(*args, **kwargs, out_val=out) if is_product and counted is not None else 0.0
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, Tensor)]
        self.add(name, tensors=tensors, flops=flops)
        return out


class _OneNorm(torch.autograd.Function):
    """Stands for torch's operator, which the meta device takes apart."""

    counting: Counting | None = None

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return _OneNorm._count("rms_norm", hidden, hidden, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        return _OneNorm._count("rms_norm, backward", hidden, hidden, hidden, grad), torch.empty_like(weight)

    @staticmethod
    def _count(name: str, like: Tensor, *tensors: Tensor) -> Tensor:
        if _OneNorm.counting is not None:
            _OneNorm.counting.add(name, tensors=[like, *tensors])
        return torch.empty_like(like)


def main() -> None:
    """Print where the time goes, without and with what a GPU is given, and the MFU that nothing can exceed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=sorted(BYTES_PER_S), default="NVIDIA H100")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7B-width, 8 layers")
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--top", type=int, default=12, help="operators to show")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    lengths = [int(length) for length in alpaca_lengths(ROWS)]
    print(f"{arguments.shape}, method {arguments.method}, on an {arguments.gpu}, {ROWS} rows, {sum(lengths)} tokens")
    print(f"assumed: products reach {PRODUCTS_REACH:.0%} of the peak, streams {MEMORY_REACHES:.0%} of the bandwidth")
    for words, is_fused, chunk in (
        ("the model's own norms, chunks as on a CPU", False, loss.CHUNK_ELEMENTS),
        ("norms fused, chunks as on a CPU", True, loss.CHUNK_ELEMENTS),
        ("norms fused, chunks as on a GPU: what a GPU does", True, loss.GPU_CHUNK_ELEMENTS),
    ):
        counting = Counting(arguments.gpu)
        count_step(counting, SHAPES[arguments.shape], arguments.method, lengths, is_fused=is_fused, chunk=chunk)
        total = sum(counting.seconds.values())
        share = counting.model_flops / counting.peak / total
        print(f"\n{words}: {total * 1e3:.1f} ms, MFU at most {share:.1%}, {sum(counting.calls.values())} operators")
    for name, seconds in counting.seconds.most_common(arguments.top):
        print(f"  {seconds * 1e3:8.2f} ms  {seconds / total:6.1%}  {counting.calls[name]:5d} x {name}")


def count_step(
    counting: Counting, shape: Shape, method: str, lengths: list[int], *, is_fused: bool, chunk: int
) -> None:  # fmt: skip
    """One step's operators: forward, backward, gradients to float32, and this GPU's eighth of the update."""
    meta = torch.device("meta")
    with _as_on_a_gpu(chunk):
        model = _model(shape)
        if method == "lora":
            add_adapters(model, TrainSpec(model="llama", method="lora"))
        if is_fused:
            assert norms.fuse_norms(model) == 2 * shape.layers + 1
        assert attention.use_rows_attention(model) is not None
        head = loss.attach_loss_head(model)
        rows = tuple(torch.zeros(length, dtype=torch.int64) for length in lengths)
        targets = tuple(torch.arange(length // 2, length - 1) for length in lengths)
        inputs = lay_out(MicroBatch(rows, targets), layout=Layout.ROWS, pad_id=0).to(meta)
        trained = [param for param in model.parameters() if param.requires_grad]
        for param in trained:
            param.register_post_accumulate_grad_hook(lambda one: setattr(one, "grad", _to_float32(one.grad)))
        _OneNorm.counting = counting
        with counting:
            target_loss(model, inputs, head=head).backward()
        _OneNorm.counting = None
    eighth = sum(param.numel() for param in trained) // GPUS
    counting.add("the update", tensors=[torch.empty(eighth * UPDATE_BYTES, dtype=torch.uint8, device=meta)])
    counting.model_flops = model_flops(
        num_parameters=matrix_parameters(model), num_layers=shape.layers, hidden_size=shape.hidden,
        tokens=sum(lengths), sum_of_squared_lengths=sum(length**2 for length in lengths),
    )  # fmt: skip


def _to_float32(grad: Tensor | None) -> None:
    """As engines/replicated.py does with a micro batch's gradient, which is dropped here."""
    assert grad is not None
    grad.float()


def _model(shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048, use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


@contextmanager
def _as_on_a_gpu(chunk: int) -> Iterator[None]:
    """Flash attention and fused norms on the meta device, with the loss in chunks of so many logits."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(attention, "why_no_flash", lambda query, dropout: None))
        stack.enter_context(patch.object(loss, "CHUNK_ELEMENTS", chunk))  # meta tensors are on no GPU
        stack.enter_context(
            patch.object(norms, "_normalised", lambda module, _, hidden: _OneNorm.apply(hidden, module.weight))
        )
        yield


if __name__ == "__main__":
    main()
