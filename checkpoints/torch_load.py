"""Verified reading into tensors in place, on any world size: each rank fetches the blocks it needs and no others.

torch.distributed.checkpoint plans which part of which saved chunk goes where; we fetch the blocks those parts lie in,
in parallel, check each digest, and copy. Where the part and its target are contiguous (FSDP's sharding along the first
dimension), block bytes go straight into the tensor; otherwise, and on CUDA, through a host buffer of that part's size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from checkpoints.reader import CommitReader, PlacedBlock, group_blocks, thread_scratch
from checkpoints.torch_state import FlatState, StoredState

LOAD_THREADS = 4


@dataclass
class _Piece:
    """One read item: bytes [start, end) of an object go into `buffer`, and from there to `target`."""

    name: str
    start: int
    end: int
    buffer: memoryview
    target: torch.Tensor
    staged: torch.Tensor | None
    missing: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def place_of(self, placed: PlacedBlock) -> memoryview | None:
        """Where in `buffer` a block belongs that lies in this piece as a whole, to be read right there."""
        first, last = placed.offset - self.start, placed.offset + placed.block.size - self.start
        return self.buffer[first:last] if first >= 0 and last <= len(self.buffer) else None

    def fill(self, data: memoryview, offset: int, *, in_place: bool = False) -> None:
        """Copy what `data` (lying at `offset` of the object) has of this piece, unless it was read right there."""
        if not in_place:
            first, last = max(self.start, offset), min(self.end, offset + len(data))
            self.buffer[first - self.start : last - self.start] = data[first - offset : last - offset]
        with self.lock:
            self.missing -= 1
            done = self.missing == 0
        if done and self.staged is not None:
            self.target.copy_(self.staged)
            self.staged, self.buffer = None, memoryview(b"")


def load_tensors(reader: CommitReader, stored: StoredState, flat: FlatState) -> None:
    """Overwrite the tensors of `flat` with the commit's.

    Raises:
        Damaged, NotCommitted, StoreUnreachable: part of the tensors may be overwritten then: load another commit.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(flat.tensors), stored.metadata, is_coordinator=True)
    with torch.no_grad():
        pieces = [
            piece
            for item in planner.create_local_plan().items
            if (piece := _piece(item, stored, planner.resolve_tensor(item).detach())) is not None
        ]
        takers = _takers(reader, pieces)

        def fetch(span: tuple[PlacedBlock, ...]) -> None:
            with torch.no_grad():  # it is a thread's own setting
                place = takers[span[0]][0].place_of(span[0]) if len(span) == 1 == len(takers[span[0]]) else None
                for placed, data in zip(span, reader.read_span(span, place or thread_scratch()), strict=True):
                    for piece in takers[placed]:
                        piece.fill(data, placed.offset, in_place=place is not None)

        with ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="load") as pool:
            for _ in pool.map(fetch, group_blocks(sorted(takers, key=lambda placed: (placed.name, placed.offset)))):
                pass


def _piece(item: ReadItem, stored: StoredState, target: torch.Tensor) -> _Piece | None:
    if target.numel() == 0:
        return None
    name, offsets = item.storage_index.fqn, item.storage_index.offset
    assert offsets is not None, "every saved chunk has an offset"
    tensor = stored.metadata.state_dict_metadata[name]
    assert isinstance(tensor, TensorStorageMetadata), "only tensors are stored"
    sizes = next(chunk.sizes for chunk in tensor.chunks if chunk.offsets == offsets)
    place, width = stored.places[name, offsets], tensor.properties.dtype.itemsize
    strides = _row_major(sizes)
    first = sum(at * stride for at, stride in zip(item.storage_offsets, strides, strict=True))
    last = first + sum((count - 1) * stride for count, stride in zip(item.lengths, strides, strict=True))
    start, end = place.offset + first * width, place.offset + (last + 1) * width
    dense = last + 1 - first == target.numel()
    if dense and target.is_contiguous() and target.device.type == "cpu":
        return _Piece(place.name, start, end, _bytes(target), target, None)
    raw = torch.empty(end - start, dtype=torch.uint8)
    staged = raw.view(target.dtype).as_strided(tuple(item.lengths), strides)
    return _Piece(place.name, start, end, raw.numpy().data, target, staged)


def _takers(reader: CommitReader, pieces: Sequence[_Piece]) -> dict[PlacedBlock, list[_Piece]]:
    """Every block that is needed, with the pieces that take from it."""
    takers: dict[PlacedBlock, list[_Piece]] = {}
    for piece in pieces:
        for placed in reader.blocks(piece.name, piece.start, piece.end - piece.start):
            takers.setdefault(placed, []).append(piece)
            piece.missing += 1
    return takers


def _row_major(sizes: torch.Size) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
