"""Weights to read: a folder of *.safetensors or PyTorch *.bin files, or a model in this machine's Hugging Face cache.

Nothing is read whole: `read` returns a stretch of one tensor, whatever its size.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.hub import is_path
from alpaca_jobs.training.weights import StoredTensor, stored_tensors

DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
    }
)
"""safetensors' names of the types that can be subtracted -> torch's."""

NAMES: Final[Mapping[torch.dtype, str]] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})

_WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class TensorInfo:
    """Type (safetensors' name) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements in all."""
        total = 1
        for size in self.shape:
            total *= size
        return total


class WeightSource(Protocol):
    """The tensors of one model."""

    folder: Path
    tensors: Mapping[str, TensorInfo]
    """In the order they are worked through: of the files, and within a .bin file as it was saved."""

    def read(self, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of a tensor, flattened in row-major order; a copy, shape (count,).

        Raises:
            ModelError: the file ends before them.
        """
        ...


class SafetensorsSource:
    """Safetensors files; every read is one read of the file, so memory holds what was asked for and no more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: dict[str, StoredTensor] = {one.name: one for one in stored_tensors(folder)}
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(_known_dtype(one.dtype, name, folder), one.shape) for name, one in self._stored.items()
        }

    def read(self, name: str, start: int, count: int) -> Tensor:
        stored, dtype = self._stored[name], DTYPES[self.tensors[name].dtype]
        data = bytearray(count * dtype.itemsize)
        with stored.path.open("rb", buffering=0) as file:
            file.seek(stored.begin + start * dtype.itemsize)
            got = read_into(file, data)
        if got < len(data):
            raise ModelError(
                f"{stored.path} ends inside {name}: it was cut short, probably while it was copied. Copy it again."
            )
        return torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)


class PickleSource:
    """PyTorch's .bin files, mapped into memory; `weights_only` keeps a file from running code of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._values: dict[str, Tensor] = {}
        for path in sorted(folder.glob("pytorch_model*.bin")):
            self._values.update(_load_mapped(path))
        if not self._values:
            raise ModelError(f"{folder} holds no tensors in its pytorch_model*.bin files. Name another folder.")
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(_known_dtype(NAMES.get(value.dtype, str(value.dtype)), name, folder), tuple(value.shape))
            for name, value in self._values.items()
        }

    def mapped(self, name: str) -> Tensor:
        """A tensor as it is stored, mapped and not yet read; not to be written to."""
        return self._values[name]

    def read(self, name: str, start: int, count: int) -> Tensor:
        value = self._values[name]
        flat = value.reshape(-1) if value.is_contiguous() else value.contiguous().reshape(-1)
        return flat[start : start + count].clone()


def open_weights(where: str, what: str) -> WeightSource:
    """Open the weights at a folder, or under a hub name that is in the local Hugging Face cache.

    Args:
        what: how the command calls this argument (RAW, TUNED, DIFF), for messages.

    Raises:
        ModelError: no such folder and no such cached model, or no weights there that can be read.
    """
    folder = _find_folder(where, what)
    if any(folder.glob("*.safetensors")):
        return SafetensorsSource(folder)
    if any(folder.glob("pytorch_model*.bin")):
        return PickleSource(folder)
    raise ModelError(
        f"{what} is {where}, and {folder} holds neither *.safetensors nor pytorch_model*.bin files. Name the folder "
        "that holds config.json and the weights."
    )


def read_config(source: WeightSource) -> dict[str, Any]:
    """The model's config.json; empty when there is none."""
    path = source.folder / "config.json"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise ModelError(f"{path} is not JSON ({exc}). Copy the model again.") from exc
    return body if isinstance(body, dict) else {}


def is_weight_file(path: Path) -> bool:
    """Whether a file of a model's folder holds weights or an index over them, in any framework's format."""
    names = (*_WEIGHT_FILES, "*.index.json", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.gguf", "*.onnx")
    return any(path.match(name) for name in names)


def _find_folder(where: str, what: str) -> Path:
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    if where.count("/") == 1 and not is_path(where):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(where, "config.json")
        except HFValidationError:
            cached = None
        if isinstance(cached, str):
            return Path(cached).parent
        raise ModelError(
            f"{what} is {where}: there is no such folder, and no such model in this machine's Hugging Face cache. "
            f"Download it first (hf download {where}), or name a folder."
        )
    raise ModelError(f"{what} is {where}, and there is no such folder. Name a folder, or a hub name (owner/name).")


def _load_mapped(path: Path) -> dict[str, Tensor]:
    try:
        body = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as exc:
        first = (str(exc).splitlines() or ["unreadable"])[0]
        raise ModelError(
            f"{path} cannot be read as plain tensors: {first} It is cut short, or older than PyTorch 1.6, or holds "
            "more than weights. Convert it to safetensors where it can be trusted."
        ) from exc
    if not isinstance(body, dict) or not all(isinstance(value, Tensor) for value in body.values()):
        raise ModelError(f"{path} holds more than named tensors, so it is no model's state. Name a model's folder.")
    return {str(name): value for name, value in body.items()}


def _known_dtype(dtype: str, name: str, folder: Path) -> str:
    if dtype not in DTYPES:
        raise ModelError(
            f"{folder}: {name} has the type {dtype}, and only {', '.join(DTYPES)} can be subtracted. Take the model "
            "before it was quantised."
        )
    return dtype


def read_into(file: Any, data: bytearray) -> int:
    """Fill `data` from an unbuffered file; returns how many bytes came, fewer where the file ends."""
    view, got = memoryview(data), 0
    while got < len(data):
        read = file.readinto(view[got:])
        if not read:
            break
        got += read
    return got
