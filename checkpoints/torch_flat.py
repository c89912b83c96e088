"""FlatShard: this rank's run of a flattened tensor, as ZeRO cuts it, saved and loaded like any other sharding.

    FlatShard(piece, size=param.shape, start=1000)     # elements 1000, 1001, ... of the flattened parameter

A run of elements is at most a few boxes of the tensor itself: an incomplete row, whole rows, an incomplete row, and so
on down the dimensions. With those boxes a commit says of every tensor what it is, by its own shape, whatever cut it; so
what ZeRO saved is loaded by FSDP2, by one process, or by ZeRO on another world size, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes of a part of a tensor, both in elements, one for each dimension."""


class FlatShard(torch.Tensor):
    """Stands for a whole tensor in a state dict and holds a run of its elements; loading writes into that run.

    It has the whole tensor's shape, dtype and device, and no arithmetic. All ranks' runs together have to be the whole
    tensor; a rank that has nothing of it passes an empty run.
    """

    local: torch.Tensor
    """1-D and contiguous: the elements from `start` on, in row-major order."""
    start: int

    @staticmethod
    def __new__(cls, local: torch.Tensor, *, size: Sequence[int], start: int) -> Self:
        """Raises ValueError when `local` is no run of elements of a tensor of that size."""
        end, whole = start + local.numel(), math.prod(size)
        if local.dim() != 1 or not local.is_contiguous() or start < 0 or end > whole:
            raise ValueError(
                f"a {tuple(local.shape)} tensor cannot be elements {start} to {end} of one of size {tuple(size)}, "
                f"which has {whole}: pass a contiguous 1-D run, without padding"
            )
        made: Self = torch.Tensor._make_wrapper_subclass(cls, tuple(size), dtype=local.dtype, device=local.device)
        made.local, made.start = local.detach(), start
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's stub forgets that it is a class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(f"a FlatShard stands for a tensor in a state dict; {func} wants its numbers: use `.local`")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override] # as above: no type there
        end = self.start + self.local.numel()
        return f"FlatShard([{self.start}, {end}) of {tuple(self.shape)}, {self.dtype})"

    # What torch.distributed.checkpoint asks of a tensor that is not plain; DTensor has the same three methods.

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk, properties=TensorProperties(dtype=self.dtype), size=torch.Size(self.shape)
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in self._boxes()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        for offsets, sizes in self._boxes():
            if torch.Size(offsets) == index.offset:
                first = _flat_index(offsets, self.shape) - self.start
                return self.local[first : first + math.prod(sizes)].view(sizes)
        raise ValueError(f"{index.fqn}: this rank has no part that begins at {index.offset}")

    def _boxes(self) -> Iterator[Box]:
        return flat_boxes(self.shape, self.start, self.start + self.local.numel())


def flat_boxes(size: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """Elements [start, end) of a flattened tensor of `size`, as boxes in order, each of them contiguous. Pure.

    At most two for each dimension but the last, and one more.
    """
    if start >= end:
        return
    if not size:
        yield (), ()
        return
    row = math.prod(size[1:])
    first, last = start // row, end // row  # rows of which [first, last) begin and end inside
    if start % row:
        yield from _in_row(size, first, start % row, min(row, end - first * row))
        first += 1
    if first < last:
        rest = tuple(size[1:])
        yield (first, *(0 for _ in rest)), (last - first, *rest)
    if end % row and first <= last:
        yield from _in_row(size, last, 0, end % row)


def _in_row(size: Sequence[int], row: int, start: int, end: int) -> Iterator[Box]:
    for offsets, sizes in flat_boxes(size[1:], start, end):
        yield (row, *offsets), (1, *sizes)


def _flat_index(offsets: Sequence[int], size: Sequence[int]) -> int:
    index = 0
    for offset, length in zip(offsets, size, strict=True):
        index = index * length + offset
    return index
