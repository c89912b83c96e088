"""Safetensors folders, read with the standard library alone: which tensors are there, and one digest over them all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alpaca_jobs.errors import ModelError

_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, order=True)
class StoredTensor:
    """Where one tensor lies in a safetensors file.

    Attributes:
        dtype: safetensors' name of the type, for example F32 or BF16.
        begin, end: bytes from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int
    end: int


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors of the *.safetensors files in a folder, sorted by name.

    Source: the safetensors format, https://huggingface.co/docs/safetensors (read 2026-11): 8 bytes little-endian header
    size, a JSON header with offsets counted from its end, then the data.

    Raises:
        ModelError: there are none, or a file is not in that format.
    """
    tensors = sorted(tensor for path in sorted(folder.glob("*.safetensors")) for tensor in _read_header(path))
    if not tensors:
        raise ModelError(f"{folder} holds no *.safetensors file with tensors. Name a folder written by export.")
    return tensors


def _read_header(path: Path) -> Iterator[StoredTensor]:
    with path.open("rb") as file:
        try:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 2**30)))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = (8 + size + int(offset) for offset in entry["data_offsets"])
                    yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, begin, end)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ModelError(
                f"{path} is not a safetensors file ({exc}). It was probably cut short; export again."
            ) from exc


def weights_digest(folder: Path) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes, in order of names.

    Independent of how tensors are spread over files and of metadata, so equal digests mean equal weights, bit for bit.
    """
    digest = hashlib.sha256()
    for tensor in stored_tensors(folder):
        digest.update(json.dumps([tensor.name, tensor.dtype, list(tensor.shape)]).encode())
        with tensor.path.open("rb") as file:
            file.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ModelError(
                        f"{tensor.path} ends inside {tensor.name}. It was probably cut short; export again."
                    )
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def files_digest(folder: Path, pattern: str) -> str:
    """SHA-256 over the names and bytes of a folder's files of a pattern, in order of names; for other formats."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(json.dumps([path.name, hashlib.file_digest(file, "sha256").hexdigest()]).encode())
    return digest.hexdigest()
