"""weights diff: TUNED - RAW, tensor by tensor, as Stanford Alpaca and Vicuna published theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from alpaca_jobs.weights.base import CHUNK, BaseTensors
from alpaca_jobs.weights.record import (
    CORRECTIONS_FILE,
    DiffRecord,
    Padding,
    ParameterSum,
    TensorDigest,
    TensorRecord,
)
from alpaca_jobs.weights.shards import ModelFolder, spans, tensor_bytes
from alpaca_jobs.weights.sources import WeightSource, open_weights

OnTensor = Callable[[int, int], None]
"""Told after every tensor: how many are done, of how many."""


@dataclass(frozen=True)
class DiffResult:
    """What was written.

    Attributes:
        num_bytes: of all elements.
        grown: tensors with more rows than RAW's.
        num_corrections: elements that RAW + difference alone would not give back to the last bit.
        sum: of all parameters of TUNED: what others pass to `recover --integrity-sum`.
    """

    out: str
    num_tensors: int
    num_elements: int
    grown: tuple[str, ...]
    padding: Padding
    num_corrections: int
    sum: float


def make_diff(
    raw: str, tuned: str, out: Path, *, padding: Padding = "mean", on_tensor: OnTensor = lambda *_: None
) -> DiffResult:
    """Write TUNED - RAW to a new folder, with TUNED's configuration and tokenizer; memory does not grow with the model.

    The subtraction is made in TUNED's type, RAW cast to it first, so base + difference in that type undoes it: for
    anybody's tool up to rounding, for `recover` to the last bit.

    Args:
        raw, tuned: folders, or names in the local Hugging Face cache.
        padding: what the rows that RAW lacks are taken to be.

    Raises:
        ModelError: models that do not belong together, or cannot be read; an `out` that is taken or cannot be written.
    """
    old, new = open_weights(raw, "RAW"), open_weights(tuned, "TUNED")
    base = BaseTensors(old, new.tensors, padding=padding, names=(f"RAW ({raw})", f"TUNED ({tuned})"))
    total = ParameterSum()
    records: dict[str, TensorRecord] = {}
    with ModelFolder(out, new.tensors) as folder:
        folder.copy_others(new.folder)
        with (folder.partial / CORRECTIONS_FILE).open("wb") as corrections:
            for number, name in enumerate(new.tensors, start=1):
                records[name] = _subtract(name, base, new, folder, corrections, total)
                on_tensor(number, len(new.tensors))
        name = Path(raw).resolve().name if Path(raw).expanduser().is_dir() else raw  # a diff is published: no paths
        record = DiffRecord(name, padding, CHUNK, total.value, records)
        record.write(folder.partial)
        if not record.num_corrections:
            (folder.partial / CORRECTIONS_FILE).unlink()
    return DiffResult(
        out=str(out), num_tensors=len(records), num_elements=sum(info.count for info in new.tensors.values()),
        grown=base.grown, padding=padding, num_corrections=record.num_corrections, sum=total.value,
    )  # fmt: skip


def _subtract(
    name: str, base: BaseTensors, new: WeightSource, folder: ModelFolder, corrections: BinaryIO, total: ParameterSum
) -> TensorRecord:
    raw, difference, tuned = TensorDigest(), TensorDigest(), TensorDigest()
    counts = []
    for start, count in spans(new.tensors[name].count, CHUNK):
        ours, theirs = new.read(name, start, count), base.read(name, start, count)
        delta = ours - theirs
        folder.append(name, delta)
        raw.add(theirs)
        difference.add(delta)
        tuned.add(ours)
        counts.append(_write_corrections(corrections, start, ours, theirs + delta))
        total.add(ours)
    total.end_tensor()
    return TensorRecord(raw.hex(), difference.hex(), tuned.hex(), tuple(counts) if any(counts) else ())


def _write_corrections(file: BinaryIO, start: int, wanted: Tensor, found: Tensor) -> int:
    """Write the elements whose bits differ; returns how many. They are compared as integers: NaN and -0.0 count too."""
    size = wanted.element_size()
    differ = (wanted.view(torch.uint8).view(-1, size) != found.view(torch.uint8).view(-1, size)).any(dim=1)
    places = differ.nonzero().view(-1)
    if places.numel():
        indices = (places + start).view(torch.uint8).view(-1, 8)
        values = wanted[places].view(torch.uint8).view(-1, size)
        file.write(tensor_bytes(torch.cat([indices, values], dim=1).view(-1)))
    return places.numel()
