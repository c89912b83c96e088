"""The tensors in a base model's files, in parts: safetensors, PyTorch's .bin, and what transformers makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.conversions import Group
from alpaca_jobs.training.weights import StoredTensor, stored_tensors


class Files(Protocol):
    """Named tensors of a folder; none is read before it is asked for."""

    shapes: Mapping[str, tuple[int, ...]]

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        """A part of a tensor; all of it for ()."""
        ...


class SafetensorsFiles:
    """The *.safetensors files of a folder."""

    def __init__(self, folder: Path) -> None:
        self._stored: dict[str, StoredTensor] = {tensor.name: tensor for tensor in stored_tensors(folder)}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in self._stored.items()}

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        """Whole rows are read, not mapped: a mapped file counts as this process's memory until somebody needs it."""
        from safetensors import safe_open

        from alpaca_jobs.weights.sources import DTYPES, read_into

        one = self._stored[name]
        first, *others = cut or (slice(0, one.shape[0] if one.shape else 1),)
        has_whole_rows = all(part == slice(0, size) for part, size in zip(others, one.shape[1:], strict=False))
        if one.dtype not in DTYPES or not has_whole_rows or not one.shape:
            with safe_open(one.path, framework="pt") as file:
                part: Tensor = file.get_slice(name)[cut] if cut else file.get_tensor(name)
                return part
        begin, end = first.start, min(first.stop, one.shape[0])
        row_bytes = (one.end - one.begin) // max(one.shape[0], 1)
        if not (end - begin) * row_bytes:
            return torch.empty(end - begin, *one.shape[1:], dtype=DTYPES[one.dtype])
        data = bytearray((end - begin) * row_bytes)
        with one.path.open("rb", buffering=0) as file:
            file.seek(one.begin + begin * row_bytes)
            if read_into(file, data) < len(data):
                raise ModelError(f"{one.path} ends inside {name}: it was cut short. Copy or download it again.")
        return torch.frombuffer(data, dtype=DTYPES[one.dtype]).view(end - begin, *one.shape[1:])


class PickledFiles:
    """The pytorch_model*.bin files of a folder, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        from alpaca_jobs.weights.sources import PickleSource

        self._source = PickleSource(folder)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: info.shape for name, info in self._source.tensors.items()
        }  # fmt: skip

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        """As the protocol says."""
        whole = self._source.mapped(name)
        return whole[cut] if cut else whole


class ConvertedFiles:
    """The model's tensors, made of those in its files; a group's results are kept until each was asked for once."""

    def __init__(self, files: Files, groups: list[Group]) -> None:
        self._files = files
        self._group_of: dict[str, Group] = {}
        self.shapes: Mapping[str, tuple[int, ...]] = self._tried(groups)
        self._made: dict[str, Tensor] = {}

    def _tried(self, groups: list[Group]) -> dict[str, tuple[int, ...]]:
        """Shapes of all results, from conversions of tensors without memory."""
        shapes = {}
        for group in groups:
            made = group.convert(lambda name: torch.empty(self._files.shapes[name], device="meta"))
            shapes.update({name: tuple(tensor.shape) for name, tensor in made.items()})
            self._group_of.update(dict.fromkeys(made, group))
        return shapes

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        """As the protocol says."""
        group = self._group_of[name]
        if group.is_name_only:
            return self._files.part(group.names[0], cut)
        if group.is_a_row_each and cut:
            rows = group.convert(lambda one: self._files.part(one, ()), rows=cut[0])[name]
            return rows[(slice(None), *cut[1:])]
        if name not in self._made:  # another group's leftovers, of tensors that this rank holds nothing of, go
            self._made = group.convert(lambda one: self._whole(one, as_stored=group.only_moves))
        whole = self._made.pop(name)
        return whole[cut] if cut else whole

    def _whole(self, name: str, *, as_stored: bool) -> Tensor:
        """What is calculated with is float32, as from_pretrained has it."""
        whole = self._files.part(name, ())
        return whole if as_stored or not whole.is_floating_point() else whole.float()
