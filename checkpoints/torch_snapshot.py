"""Snapshot: this rank's part of a state, copied to host memory, so that training goes on while it is stored.

One buffer, kept between saves: the only extra copy of the state there ever is. What may be copied later (torch_overlap)
is left to another thread; the rest is in the buffer when `take` returns. On CUDA the buffer is pinned, and copies run
together: those made at once on the stream in use, behind which whatever changes their source comes.

Pinned memory comes from torch in powers of two, and what is given back is kept for the next who wants just as much: in
one piece 9.4 GiB would take 16. So the buffer is several pieces, each of which fills a power of two.
Source: torch 2.13, ATen/core/CachingHostAllocator.h, allocate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch.distributed.checkpoint.utils import find_state_dict_object

from checkpoints.torch_overlap import LateCopy, MemoryRanges, Move
from checkpoints.torch_plan import SaveLayout
from checkpoints.torch_state import FlatState

_PAGE = 4096


class Snapshot:
    """A host buffer that fits one SaveLayout."""

    def __init__(self, layout: SaveLayout, *, pinned: bool) -> None:
        self._layout = layout
        self._buffers: dict[str, torch.Tensor] = {}
        rooms = {planned.name: -(-planned.size // _PAGE) * _PAGE for planned in layout.objects}
        for names in pack(rooms):
            # Zeros, so that the gaps between tensors are the same bytes in every save.
            piece = torch.zeros(sum(rooms[name] for name in names), dtype=torch.uint8, pin_memory=pinned)
            start = 0
            for name in names:
                self._buffers[name] = piece[start : start + rooms[name]]
                start += rooms[name]

    def take(self, flat: FlatState, later: MemoryRanges) -> LateCopy:
        """Copy the tensors of `flat` into the buffer, but for those in `later`: these the returned copy is to make."""
        put_off: list[Move] = []
        devices: set[torch.device] = set()
        for move in self._moves(flat):
            if move.source.is_cuda:
                devices.add(move.source.device)
            if later.hold(move.source):
                put_off.append(move)
            else:
                move.make()
        begun = {device: torch.cuda.current_stream(device).record_event() for device in devices}
        copy = LateCopy(put_off, begun)
        if not put_off:
            copy.run()
        return copy

    def _moves(self, flat: FlatState) -> Iterator[Move]:
        for planned in self._layout.objects:
            buffer = self._buffers[planned.name]
            for placed in planned.items:
                index = placed.item.index
                source = find_state_dict_object(flat.tensors, index).detach()
                span = buffer[placed.offset : placed.offset + placed.size]
                target = span.view(source.dtype).view(source.shape)
                yield Move(index.fqn, flat.tensors[index.fqn], source, target)

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of one object, without a copy; valid until the next `take`, whole once its copy has run."""
        size = next(planned.size for planned in self._layout.objects if planned.name == name)
        return self._buffers[name][:size].numpy().data


def pack(sizes: Mapping[str, int]) -> list[list[str]]:
    """Which objects, of so many bytes each, lie in one piece of memory. Pure.

    The pieces, each rounded up to a power of two, take little more than the objects: each is as large a power of two as
    what is left can fill, and the largest objects come first.
    """
    waiting = sorted(sizes, key=lambda name: -sizes[name])
    pieces = []
    while waiting:
        left = max(_power_within(sum(sizes[name] for name in waiting)), _power_around(sizes[waiting[0]]))
        piece = []
        for name in waiting:
            if sizes[name] <= left:
                piece.append(name)
                left -= sizes[name]
        pieces.append(piece)
        taken = set(piece)
        waiting = [name for name in waiting if name not in taken]
    return pieces


def _power_within(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def _power_around(number: int) -> int:
    return 1 << (number - 1).bit_length()
