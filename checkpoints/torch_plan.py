"""Which rank stores which bytes, and in which object: torch.distributed.checkpoint plans, we lay out. Deterministic.

Every rank computes the global plan from everybody's local plans, so one meeting is enough, and none while the structure
of the state stays what it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from checkpoints.torch_state import ChunkPlace, FlatState

OBJECT_BYTES = 16 * 2**20
"""An object is closed once it holds this much; several objects are stored at a time. A larger tensor makes its own."""
_ALIGN = 64  # any dtype can be viewed at such an offset
_OWN_BLOCK_BYTES = 2**20  # tensors this large share no block with others: a frozen one can be referenced later


@dataclass(frozen=True)
class PlacedItem:
    """One chunk of a tensor and where it lies in its object."""

    item: WriteItem
    offset: int
    size: int


@dataclass(frozen=True)
class PlannedObject:
    """One object of one rank."""

    name: str
    size: int
    items: tuple[PlacedItem, ...]
    cuts: tuple[int, ...]


@dataclass(frozen=True)
class SaveLayout:
    """The objects this rank stores, and for the record (state.json) where every rank's chunks lie."""

    objects: tuple[PlannedObject, ...]
    metadata: Metadata
    places: dict[tuple[str, torch.Size], ChunkPlace]

    @property
    def size_bytes(self) -> int:
        """Host memory that a snapshot of this rank's part takes."""
        return sum(planned.size for planned in self.objects)


def plan_local(flat: FlatState, *, is_coordinator: bool) -> SavePlan:
    """What this rank holds of the tensors in `flat`."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(dict(flat.tensors), is_coordinator=is_coordinator)
    return planner.create_local_plan()


def plan_global(local_plans: Sequence[SavePlan], rank: int) -> SaveLayout:
    """Decide who stores what: replicated tensors once, spread evenly. The same on every rank but for `objects`."""
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner({}, is_coordinator=True)
    plans, metadata = planner.create_global_plan(list(local_plans))
    for stored in metadata.state_dict_metadata.values():
        assert isinstance(stored, TensorStorageMetadata), "only tensors are planned"
        # Uneven sharding leaves some ranks with nothing of a tensor; nothing is stored for nothing.
        stored.chunks = [chunk for chunk in stored.chunks if math.prod(chunk.sizes)]
    places: dict[tuple[str, torch.Size], ChunkPlace] = {}
    mine: tuple[PlannedObject, ...] = ()
    for owner, plan in enumerate(plans):
        objects = lay_out(plan.items, owner)
        for planned in objects:
            for placed in planned.items:
                places[placed.item.index.fqn, _chunk(placed.item).offsets] = ChunkPlace(planned.name, placed.offset)
        if owner == rank:
            mine = objects
    return SaveLayout(mine, metadata, places)


def lay_out(items: Sequence[WriteItem], rank: int) -> tuple[PlannedObject, ...]:
    """Pack a rank's chunks into objects, in plan order, aligned, large ones beginning a block of their own."""
    objects: list[PlannedObject] = []
    placed: list[PlacedItem] = []
    cuts: list[int] = []
    end = 0

    def close() -> None:
        nonlocal placed, cuts, end
        if placed:
            name = f"rank-{rank:05d}-{len(objects):04d}.bin"
            objects.append(PlannedObject(name, end, tuple(placed), tuple(cuts)))
        placed, cuts, end = [], [], 0

    after_large = False
    for item in items:
        size = item_bytes(item)
        if size == 0:
            continue
        if end and end + size > OBJECT_BYTES:
            close()
        start = -(-end // _ALIGN) * _ALIGN
        large = size >= _OWN_BLOCK_BYTES
        if start and (large or after_large):
            cuts.append(start)
        placed.append(PlacedItem(item, start, size))
        end, after_large = start + size, large
    close()
    return tuple(objects)


def item_bytes(item: WriteItem) -> int:
    """Size of a chunk's data."""
    assert item.tensor_data is not None, "only tensors are planned"
    return math.prod(_chunk(item).sizes) * item.tensor_data.properties.dtype.itemsize


def _chunk(item: WriteItem) -> torch.distributed.checkpoint.metadata.ChunkStorageMetadata:
    assert item.tensor_data is not None, "only tensors are planned"
    return item.tensor_data.chunk
