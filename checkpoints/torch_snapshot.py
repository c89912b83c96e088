"""Snapshot: this rank's part of a state, copied to host memory, so that training goes on while it is stored.

One buffer, kept between saves: the only extra copy of the state there ever is. What may be copied later (torch_overlap)
is left to another thread; the rest is in the buffer when `take` returns. On CUDA the buffer is pinned, and copies run
together: those made at once on the stream in use, behind which whatever changes their source comes.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        self._starts: dict[str, int] = {}
        end = 0
        for planned in layout.objects:
            self._starts[planned.name] = end
            end += -(-planned.size // _PAGE) * _PAGE
        # Zeros, so that the gaps between tensors are the same bytes in every save.
        self._buffer = torch.zeros(end, dtype=torch.uint8, pin_memory=pinned)

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
            start = self._starts[planned.name]
            for placed in planned.items:
                index = placed.item.index
                source = find_state_dict_object(flat.tensors, index).detach()
                span = self._buffer[start + placed.offset : start + placed.offset + placed.size]
                target = span.view(source.dtype).view(source.shape)
                yield Move(index.fqn, flat.tensors[index.fqn], source, target)

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of one object, without a copy; valid until the next `take`, whole once its copy has run."""
        size = next(planned.size for planned in self._layout.objects if planned.name == name)
        start = self._starts[name]
        return self._buffer[start : start + size].numpy().data
