"""A model's folder being written: safetensors shards filled front to back, under another name until all is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError
from alpaca_jobs.weights.sources import DTYPES, TensorInfo, is_weight_file

MAX_SHARD_BYTES = 5 * 10**9
"""transformers' own `max_shard_size` of 5GB."""

_INDEX = "model.safetensors.index.json"


def plan_shards(tensors: Mapping[str, TensorInfo], max_bytes: int = MAX_SHARD_BYTES) -> list[list[str]]:
    """Spread tensors over files in their order; a tensor larger than `max_bytes` has one to itself. Pure."""
    shards: list[list[str]] = []
    size = 0
    for name, info in tensors.items():
        num_bytes = info.count * DTYPES[info.dtype].itemsize
        if not shards or size + num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


class ModelFolder:
    """Writes OUT as OUT.partial and renames it at the end: what bears the name is whole.

    A context manager. `append` takes every tensor's elements in the order of `tensors`; leaving without an error
    checks that all came and renames. An error leaves nothing behind.

    Args:
        out: a folder that does not exist, or is empty.
        tensors: everything that will be written.

    Raises:
        ModelError: `out` is taken, or cannot be written.
    """

    def __init__(self, out: Path, tensors: Mapping[str, TensorInfo], *, max_bytes: int = MAX_SHARD_BYTES) -> None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ModelError(f"{out} exists and is not empty; nothing was written. Name another folder.")
        self._out, self._tensors = out, tensors
        self.partial = out.with_name(f"{out.name}.partial")
        self._shards = plan_shards(tensors, max_bytes)
        self._names = [_shard_name(number, len(self._shards)) for number in range(len(self._shards))]
        self._left: list[tuple[int, str]] = [
            (number, name) for number, shard in enumerate(self._shards) for name in shard
        ]
        self._left.reverse()
        self._missing = 0  # elements that the tensor begun last still lacks
        self._file: BinaryIO | None = None

    def __enter__(self) -> ModelFolder:
        shutil.rmtree(self.partial, ignore_errors=True)  # what an interrupted one left
        try:
            self.partial.mkdir(parents=True)
        except OSError as exc:
            raise ModelError(f"{self.partial} cannot be made: {exc.strerror}. Name a folder you may write.") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as exc:  # what was still buffered did not fit
            kind, error = kind or OSError, error or exc
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise ModelError(f"{self._out} cannot be written: {error.strerror or error}. Make room.") from error
            return
        assert not self._left, f"{len(self._left)} tensors were never written"
        assert not self._missing, f"the last tensor lacks {self._missing} elements"
        if len(self._shards) > 1:
            (self.partial / _INDEX).write_text(self._index(), encoding="utf-8")
        with suppress(FileNotFoundError):
            self._out.rmdir()
        self.partial.rename(self._out)

    def append(self, name: str, part: Tensor) -> None:
        """Write the next elements of tensor `name`: shape (n,), of the type announced."""
        if not self._missing:
            self._begin(name)
        assert self._file is not None
        assert part.dtype == DTYPES[self._tensors[name].dtype], f"{name}: {part.dtype}"
        self._file.write(tensor_bytes(part))
        self._missing -= part.numel()

    def copy_others(self, folder: Path) -> None:
        """Copy what a model's folder holds beside weights: configuration, tokenizer, licence."""
        for path in sorted(folder.iterdir()):
            if path.is_file() and not is_weight_file(path) and not (self.partial / path.name).exists():
                shutil.copyfile(path, self.partial / path.name)

    def _begin(self, name: str) -> None:
        number, expected = self._left.pop()
        assert name == expected, f"{name} came where {expected} belongs"
        if name == self._shards[number][0]:
            if self._file is not None:
                self._file.close()
            self._file = (self.partial / self._names[number]).open("wb")
            self._file.write(_header((one, self._tensors[one]) for one in self._shards[number]))
        self._missing = self._tensors[name].count

    def _index(self) -> str:
        total = sum(info.count * DTYPES[info.dtype].itemsize for info in self._tensors.values())
        weight_map = {
            name: file for file, shard in zip(self._names, self._shards, strict=True) for name in shard
        }  # fmt: skip
        return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def tensor_bytes(part: Tensor) -> memoryview:
    """The bytes of a contiguous 1-D tensor, without a copy; little-endian, as every machine torch runs on."""
    values: Any = part.contiguous().view(torch.uint8).numpy()
    return memoryview(values).cast("B")


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _header(tensors: Iterable[tuple[str, TensorInfo]]) -> bytes:
    """A safetensors header. Source: https://huggingface.co/docs/safetensors (read 2026-11): 8 bytes little-endian
    size, then JSON with offsets counted from its end, padded with spaces so that the data is aligned to 8 bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, info in tensors:
        end = offset + info.count * DTYPES[info.dtype].itemsize
        entries[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def spans(count: int, size: int) -> Sequence[tuple[int, int]]:
    """[start, length) pairs that cover `count` elements by stretches of at most `size`; one empty one for none."""
    return [(start, min(size, count - start)) for start in range(0, count, size)] or [(0, 0)]
