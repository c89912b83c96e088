"""FSDP2 and several micro batches: how often gradients are exchanged, what that holds in memory, and the same sums."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.engines import fsdp
from alpaca_jobs.training.engines.fsdp import HELD_SHARE, Fsdp, holds_gradients

CPU = torch.device("cpu")


def _gradients(monkeypatch: pytest.MonkeyPatch, *, held_bytes: int, micro_batches: int) -> tuple[int, float, Any]:
    """How many times a group of parameters was reduced in a step of so many micro batches; squared norm, gradients."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups
    from transformers import LlamaConfig, LlamaForCausalLM

    reduced, real = [], groups.foreach_reduce
    monkeypatch.setattr(groups, "foreach_reduce", lambda *args: (reduced.append(1), real(*args))[1])
    monkeypatch.setattr(fsdp, "HELD_BYTES_ON_CPU", held_bytes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    engine = Fsdp(model, TrainSpec(model="m", dtype="float32"), device=CPU, ranks_per_node=1)
    for number in range(micro_batches):
        ids = torch.arange(6 * number, 6 * number + 6)[None]
        engine.backward(engine.model(input_ids=ids, labels=ids).loss, is_last=number == micro_batches - 1)
    norm = float(engine.squared_norm())
    found = {name: one.grad.to_local().clone() for name, one in engine.model.named_parameters()}
    monkeypatch.undo()
    return len(reduced), norm, found


def test_held_gradients_are_reduced_once_a_step_and_are_the_same(
    one_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = 3  # two layers, and the rest
    once, norm, gradients = _gradients(monkeypatch, held_bytes=2**30, micro_batches=3)
    each, each_norm, each_gradients = _gradients(monkeypatch, held_bytes=0, micro_batches=3)
    assert (once, each) == (groups, 3 * groups)
    assert norm == pytest.approx(each_norm, rel=1e-5)
    for name, one in gradients.items():
        assert torch.allclose(one, each_gradients[name], atol=1e-6), name
    assert _gradients(monkeypatch, held_bytes=0, micro_batches=1)[0] == groups


def test_only_a_small_part_of_a_gpu_holds_whole_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    three, seven = (torch.empty(int(size * 1e9), device="meta") for size in (2.9, 6.74))
    assert holds_gradients([three], torch.device("cuda"))
    assert not holds_gradients([seven], torch.device("cuda"))
    assert HELD_SHARE * gpu.total_memory == 12e9
