"""weights_diff.json: what a diff was made from, tensor by tensor; by it `recover` tells a wrong base from a right one.

    {"format_version": 1, "made_by": "alpaca-jobs weights diff", "raw": "...", "padding": "mean", "chunk": 1048576,
     "sum": 50637.18, "tensors": {"model.norm.weight": {"raw": "<sha256>", "delta": "...", "tuned": "...",
                                                        "corrections": [0, 3]}}}

Digests are over the elements' bytes: of RAW in the diff's type and shape, of the difference, of TUNED. Adding the
difference to RAW does not always give TUNED back to the last bit, because the difference was rounded. Where it does
not, the element is written to weights_diff.corrections: 8 bytes index (little-endian), then the element. `corrections`
counts them for every stretch of `chunk` elements of the tensor; it is left out where there are none. They lie in the
order of `tensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError
from alpaca_jobs.weights.shards import tensor_bytes

RECORD_FILE: Final = "weights_diff.json"
CORRECTIONS_FILE: Final = "weights_diff.corrections"
FORMAT_VERSION: Final = 1

Padding = Literal["mean", "zero"]
"""What the rows are that RAW lacks: the mean of its rows (Stanford Alpaca), or zeros (Vicuna v0)."""


@dataclass(frozen=True)
class TensorRecord:
    """Digests of one tensor in its three forms, and how many corrections each of its stretches has."""

    raw: str
    delta: str
    tuned: str
    corrections: tuple[int, ...] = ()


@dataclass(frozen=True)
class DiffRecord:
    """What weights_diff.json says."""

    raw: str
    padding: Padding
    chunk: int
    sum: float
    tensors: Mapping[str, TensorRecord]

    @property
    def num_corrections(self) -> int:
        """Elements that base + difference alone would not give back to the last bit."""
        return sum(sum(one.corrections) for one in self.tensors.values())

    def write(self, folder: Path) -> None:
        """Write the file."""
        tensors = {
            name: {"raw": one.raw, "delta": one.delta, "tuned": one.tuned}
            | ({"corrections": list(one.corrections)} if one.corrections else {})
            for name, one in self.tensors.items()
        }
        body = {
            "format_version": FORMAT_VERSION, "made_by": "alpaca-jobs weights diff", "raw": self.raw,
            "padding": self.padding, "chunk": self.chunk, "sum": self.sum, "tensors": tensors,
        }  # fmt: skip
        (folder / RECORD_FILE).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> DiffRecord | None:
    """The record of a diff; None for one that others made.

    Raises:
        ModelError: there is one that this version does not understand.
    """
    path = folder / RECORD_FILE
    try:
        body: Any = json.loads(path.read_text(encoding="utf-8"))
        if body["format_version"] != FORMAT_VERSION:
            raise ModelError(
                f"{path} has format_version {body['format_version']}, and this version reads {FORMAT_VERSION}. Use the "
                "version of alpaca-jobs that wrote it."
            )
        if body["padding"] not in ("mean", "zero"):
            raise ValueError(f"padding is {body['padding']!r}")
        tensors = {
            str(name): TensorRecord(
                str(one["raw"]), str(one["delta"]), str(one["tuned"]), tuple(map(int, one.get("corrections", ())))
            )
            for name, one in body["tensors"].items()
        }
        return DiffRecord(str(body["raw"]), body["padding"], int(body["chunk"]), float(body["sum"]), tensors)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"{path} is damaged ({type(exc).__name__}: {exc}). Download the diff again.") from exc


@dataclass
class ParameterSum:
    """Alpaca's integrity sum: all parameters added up, each tensor in turn.

    `value` is in float64; `value_32` adds the tensors' sums in float32, as the published check does.
    """

    value: float = 0.0
    value_32: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float32))
    _tensor: float = 0.0

    def add(self, part: Tensor) -> None:
        """Add elements of the tensor at hand."""
        self._tensor += float(part.sum(dtype=torch.float64))

    def end_tensor(self) -> None:
        """The next elements are another tensor's."""
        self.value += self._tensor
        self.value_32 += torch.tensor(self._tensor, dtype=torch.float32)
        self._tensor = 0.0

    def is_close(self, wanted: float, tolerance: float) -> bool:
        """Whether either sum is within the tolerance."""
        return min(abs(self.value - wanted), abs(float(self.value_32) - wanted)) <= tolerance


class TensorDigest:
    """SHA-256 over a tensor's elements, part by part."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, part: Tensor) -> None:
        self._digest.update(tensor_bytes(part))

    def hex(self) -> str:
        return self._digest.hexdigest()
