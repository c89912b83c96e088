"""weights recover: RAW + DIFF, checked tensor by tensor where the diff says what has to come out."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError
from alpaca_jobs.weights.base import CHUNK, BaseTensors
from alpaca_jobs.weights.diff import OnTensor
from alpaca_jobs.weights.record import (
    CORRECTIONS_FILE,
    RECORD_FILE,
    DiffRecord,
    Padding,
    ParameterSum,
    TensorDigest,
    TensorRecord,
    read_record,
)
from alpaca_jobs.weights.shards import ModelFolder, spans
from alpaca_jobs.weights.sources import DTYPES, WeightSource, open_weights

SUM_TOLERANCE: Final = 1e-2
"""Of the integrity sum, absolute: what Stanford Alpaca's own check allows (its sum for the 7B: 50637.1836)."""


@dataclass(frozen=True)
class RecoverResult:
    """What was written.

    Attributes:
        verified: whether every tensor was compared with the digest recorded when the diff was made; False for a diff
            that others made, which records none.
        sum: of all parameters.
        grown: tensors with more rows than RAW's.
    """

    out: str
    num_tensors: int
    num_elements: int
    verified: bool
    grown: tuple[str, ...]
    sum: float


def recover(
    raw: str,
    diff: str,
    out: Path,
    *,
    padding: Padding | None = None,
    integrity_sum: float | None = None,
    sum_tolerance: float = SUM_TOLERANCE,
    on_tensor: OnTensor = lambda *_: None,
) -> RecoverResult:
    """Write RAW + DIFF to a new folder, with DIFF's configuration and tokenizer; memory does not grow with the model.

    A diff made by `make_diff` gives back the very bits that it was made from, or an error. One made by others (Alpaca,
    Vicuna) is added in its own type, as their tools do; only the integrity sum can say whether the base was right.

    Args:
        raw, diff: folders, or names in the local Hugging Face cache.
        padding: what the rows that RAW lacks were taken to be; None for what the diff records.
        integrity_sum: what all parameters have to add up to, as Alpaca's check has it; None for no check.

    Raises:
        ModelError: the wrong base, a damaged diff, another sum; models that cannot be read; an `out` that is taken.
    """
    old, delta = open_weights(raw, "RAW"), open_weights(diff, "DIFF")
    record = read_record(delta.folder)
    if record is not None:
        _check_complete(record, delta, diff)
        if padding not in (None, record.padding):
            raise ModelError(f"{diff} was made with --padding {record.padding}. Leave --padding away.")
        padding = record.padding
    base = BaseTensors(old, delta.tensors, padding=padding, names=(f"RAW ({raw})", f"DIFF ({diff})"))
    total = ParameterSum()
    with ExitStack() as stack:
        folder = stack.enter_context(ModelFolder(out, delta.tensors))
        folder.copy_others(delta.folder)
        for name in (RECORD_FILE, CORRECTIONS_FILE):
            (folder.partial / name).unlink(missing_ok=True)
        corrections = None
        if record is not None and record.num_corrections:
            corrections = stack.enter_context(_open_corrections(delta.folder))
        begins = {} if record is None else _corrections_begin(record, delta)
        for number, name in enumerate(delta.tensors, start=1):
            if corrections is not None:
                corrections.seek(begins[name])
            adding = _Adding(name, base, delta, folder, total, corrections)
            if record is None:
                adding.add(())
            else:
                _check(record, name, adding.add(record.tensors[name].corrections, record.chunk), (raw, diff), number)
            on_tensor(number, len(delta.tensors))
        if integrity_sum is not None and not total.is_close(integrity_sum, sum_tolerance):
            raise ModelError(
                f"All parameters add up to {total.value:.4f}, and --integrity-sum is {integrity_sum} (tolerance "
                f"{sum_tolerance:g}). Most often RAW is another model, or another conversion of it; nothing was kept."
            )
    return RecoverResult(
        out=str(out), num_tensors=len(delta.tensors), num_elements=sum(info.count for info in delta.tensors.values()),
        verified=record is not None, grown=base.grown, sum=total.value,
    )  # fmt: skip


@dataclass(frozen=True)
class _Adding:
    """One tensor on its way."""

    name: str
    base: BaseTensors
    delta: WeightSource
    folder: ModelFolder
    total: ParameterSum
    corrections: BinaryIO | None

    def add(self, corrections: tuple[int, ...], chunk: int = CHUNK) -> TensorRecord:
        """Add, stretch by stretch; returns the digests of what was read and written."""
        raw, difference, whole = TensorDigest(), TensorDigest(), TensorDigest()
        for number, (start, count) in enumerate(spans(self.delta.tensors[self.name].count, chunk)):
            theirs, delta = self.base.read(self.name, start, count), self.delta.read(self.name, start, count)
            tuned = theirs + delta
            if corrections and corrections[number]:
                self._correct(tuned, start, corrections[number])
            self.folder.append(self.name, tuned)
            raw.add(theirs)
            difference.add(delta)
            whole.add(tuned)
            self.total.add(tuned)
        self.total.end_tensor()
        return TensorRecord(raw.hex(), difference.hex(), whole.hex())

    def _correct(self, tuned: Tensor, start: int, count: int) -> None:
        assert self.corrections is not None
        size = tuned.element_size()
        data = bytearray(self.corrections.read(count * (8 + size)))
        if len(data) < count * (8 + size):
            raise ModelError(f"{CORRECTIONS_FILE} of the diff was cut short. Download the diff again.")
        entries = torch.frombuffer(data, dtype=torch.uint8).view(count, 8 + size)
        places = entries[:, :8].contiguous().view(-1).view(torch.int64) - start
        if places.min() < 0 or places.max() >= tuned.numel():
            raise ModelError(f"{CORRECTIONS_FILE} of the diff is damaged. Download the diff again.")
        tuned[places] = entries[:, 8:].contiguous().view(-1).view(tuned.dtype)


def _corrections_begin(record: DiffRecord, delta: WeightSource) -> dict[str, int]:
    """Where each tensor's corrections begin in their file, in bytes: they lie in the record's order, which is that of
    TUNED's files, and DIFF's may be another (of a .bin file the order in which it was saved)."""
    begins, at = {}, 0
    for name, one in record.tensors.items():
        begins[name] = at
        at += sum(one.corrections) * (8 + DTYPES[delta.tensors[name].dtype].itemsize)
    return begins


def _open_corrections(folder: Path) -> BinaryIO:
    try:
        return (folder / CORRECTIONS_FILE).open("rb")
    except FileNotFoundError as exc:
        raise ModelError(f"{folder} lacks {CORRECTIONS_FILE}, which its record counts on. Download it again.") from exc


def _check_complete(record: DiffRecord, delta: WeightSource, diff: str) -> None:
    if missing := [name for name in record.tensors if name not in delta.tensors]:
        raise ModelError(
            f"{diff} lacks {missing[0]} and {len(missing) - 1} more tensors that it was made with. A shard is missing: "
            "download it again."
        )
    if extra := [name for name in delta.tensors if name not in record.tensors]:
        raise ModelError(f"{diff} holds {extra[0]}, which it was not made with. Remove what does not belong there.")


def _check(record: DiffRecord, name: str, found: TensorRecord, names: tuple[str, str], number: int) -> None:
    """Hold the digests of one tensor against the recorded ones."""
    raw, diff = names
    wanted = record.tensors[name]
    if found.raw != wanted.raw:
        before = "It is the first tensor" if number == 1 else f"The {number - 1} tensors before it are right"
        raise ModelError(
            f"RAW ({raw}) is not the base that {diff} was made from: the SHA-256 of {name} is {found.raw[:16]}…, and "
            f"in {record.raw} it was {wanted.raw[:16]}…. {before}. Name the right base; nothing was kept."
        )
    if found.delta != wanted.delta:
        raise ModelError(
            f"DIFF ({diff}) is damaged: the SHA-256 of {name} is {found.delta[:16]}…, recorded was "
            f"{wanted.delta[:16]}…. Download it again; nothing was kept."
        )
    if found.tuned != wanted.tuned:
        raise ModelError(
            f"{name} did not come out as it was: RAW and DIFF are right, so {CORRECTIONS_FILE} of {diff} is damaged. "
            "Download it again; nothing was kept."
        )
