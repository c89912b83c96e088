"""Snapshot: this rank's part of a state, copied to host memory, so that training goes on while it is stored.

One buffer, kept between saves: the only extra copy of the state there ever is. On CUDA it is pinned and the copies run
together; the snapshot is complete when `take` returns.
"""

from __future__ import annotations

import torch
from torch.distributed.checkpoint.utils import find_state_dict_object

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

    def take(self, flat: FlatState) -> None:
        """Copy the tensors of `flat` into the buffer."""
        devices = set()
        with torch.no_grad():
            for planned in self._layout.objects:
                start = self._starts[planned.name]
                for placed in planned.items:
                    source = find_state_dict_object(flat.tensors, placed.item.index).detach()
                    span = self._buffer[start + placed.offset : start + placed.offset + placed.size]
                    span.view(source.dtype).view(source.shape).copy_(source, non_blocking=True)
                    if source.is_cuda:
                        devices.add(source.device)
        for device in devices:
            torch.cuda.synchronize(device)

    def bytes_of(self, name: str) -> memoryview:
        """The bytes of one object, without a copy; valid until the next `take`."""
        size = next(planned.size for planned in self._layout.objects if planned.name == name)
        start = self._starts[name]
        return self._buffer[start : start + size].numpy().data
