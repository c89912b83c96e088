"""What a base model takes while it is made: counted in bytes of live tensors, so that float32's would show."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_llama
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.making import make_model, name_base
from alpaca_jobs.training.recipes import build_tokenizer
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer

CPU = torch.device("cpu")
LAYERS, WIDTH = 24, 64


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors had at once, of those made inside; stored ones that are only mapped count as well."""

    def __init__(self) -> None:
        super().__init__()
        self._now, self.most = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._now += size
        self.most = max(self.most, self._now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> Path:
    """A LLaMA of many layers, so that the two of a trial are few."""
    return tiny_llama(
        tmp_path_factory.mktemp("deep"), files, hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS, max_position_embeddings=128,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> RowTokenizer:
    """The base's."""
    return load_tokenizer(build_tokenizer(TrainSpec(model=str(base)), ()))


def _bytes(model: nn.Module) -> int:
    return sum(param.numel() * param.element_size() for param in model.parameters())


@pytest.mark.parametrize("engine", ["single", "ddp"])
def test_a_frozen_base_never_takes_the_bytes_of_float32(engine: str, base: Path, tokenizer: RowTokenizer) -> None:
    train = TrainSpec(model=str(base), method="lora", engine=engine, max_length=64)
    make_model(train, tokenizer, device=CPU, world_size=1)  # modules are loaded by now, and caches filled
    with LiveBytes() as live:
        made = make_model(train, tokenizer, device=CPU, world_size=1)
    kinds = {param.dtype for param in made.model.parameters() if not param.requires_grad}
    in_float32 = sum(4 * param.numel() for param in made.model.parameters())
    assert kinds == {torch.bfloat16}
    assert all(param.dtype == torch.float32 for param in made.model.parameters() if param.requires_grad)
    assert _bytes(made.model) < 0.55 * in_float32
    assert live.most < 0.8 * in_float32, f"{live.most:,} bytes at once, {in_float32:,} in float32"


def test_in_float32_a_base_beside_adapters_has_the_bits_it_is_stored_with(base: Path, tokenizer: RowTokenizer) -> None:
    from safetensors.torch import load_file

    train = TrainSpec(model=str(base), method="lora", engine="single", max_length=64, dtype="float32")
    model = make_model(train, tokenizer, device=CPU, world_size=1).model
    stored = load_file(base / "model.safetensors")
    frozen = {name: one for name, one in model.named_parameters() if not one.requires_grad}
    assert {name.replace(".base_layer.", ".") for name in frozen} == stored.keys()
    for name, param in frozen.items():
        assert torch.equal(param, stored[name.replace(".base_layer.", ".")]), name


def test_zero_3_has_one_parameter_in_memory_at_a_time(base: Path, tokenizer: RowTokenizer) -> None:
    train = TrainSpec(model=str(base), engine="deepspeed-zero3", max_length=64)
    made = make_model(train, tokenizer, device=CPU, world_size=2)
    assert made.fill is not None
    assert all(param.is_meta and param.dtype == torch.bfloat16 for param in made.model.parameters())
    with LiveBytes() as live:
        largest = _cut_up(made.fill.one_by_one(made.model))
    assert live.most < 4 * largest < 0.2 * 2 * sum(param.numel() for param in build(base).parameters())


def _cut_up(params: Iterator[nn.Parameter]) -> int:
    """What DeepSpeed does of it: each is used and freed before the next is asked for. Returns the largest's bytes."""
    largest = 0
    for param in params:
        assert not param.is_meta
        largest = max(largest, 4 * param.numel())  # as stored
        param.data = torch.empty(0, dtype=param.dtype)
    return largest


def build(base: Path) -> nn.Module:
    """The whole base model."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(base)
    return model


def test_a_base_in_bin_files_is_read_in_parts_and_named_by_what_it_is(
    base: Path, tokenizer: RowTokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "bin"
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    whole = build(base)
    torch.save(whole.state_dict(), folder / "pytorch_model.bin")
    train = TrainSpec(model=str(folder), method="lora", engine="single", max_length=64, dtype="float32")
    params = dict(make_model(train, tokenizer, device=CPU, world_size=1).model.named_parameters())
    for name, param in whole.named_parameters():
        held = params.get(name, params.get(name.replace("_proj.weight", "_proj.base_layer.weight")))
        assert held is not None
        assert torch.equal(held, param), name
    before = name_base(train)
    assert before["weights"].startswith("sha256 of files ")
    with torch.no_grad():
        next(whole.parameters())[0, 0] += 1
    torch.save(whole.state_dict(), folder / "pytorch_model.bin")
    assert name_base(train) != before
