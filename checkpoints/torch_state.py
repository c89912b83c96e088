"""A nested state dict <-> flat named tensors and plain values, and the JSON that says where each tensor's bytes lie.

state.json, an object of the commit like any other (so its digest is in the manifest):

    {"tensors": {"model.w": {"dtype": "float32", "size": [8, 4],
                             "chunks": [[[0, 0], [4, 4], "rank-00000-0000.bin", 0], ...]}},
     "values": {"optim.param_groups.0.lr": 0.001}}

A chunk is [offsets in the tensor, sizes, object, byte offset there]; its bytes are row-major, little-endian.

A tensor made of others (the moments of torchao's 8-bit optimizers, say) is kept as these, "name.codes", "name.scale":
copied as one it would be dequantised here, quantised again when it is loaded, and other bits than it was.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from checkpoints.errors import StateMismatch
from checkpoints.torch_flat import FlatShard

STATE_OBJECT = "state.json"

Partial = bool | Collection[str]
"""Whether a state may ask for less than a commit has: for anything less, or for less below these first names."""

DTYPES: dict[str, torch.dtype] = {
    name: value
    for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
        "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool",
    )
    if isinstance(value := getattr(torch, name, None), torch.dtype)
}  # fmt: skip
_DTYPE_NAMES = {value: name for name, value in DTYPES.items()}


@dataclass(frozen=True)
class Leaf:
    """A plain value of a state dict and where to put its loaded successor."""

    container: Any
    key: Any
    value: Any


@dataclass(frozen=True)
class FlatState:
    """A state dict taken apart: dotted name -> tensor, dotted name -> plain value."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Leaf]

    def structure(self) -> tuple[Any, ...]:
        """Equal for two states exactly when a save plan for one fits the other; cheap."""
        return tuple(
            (name, tuple(tensor.shape), tensor.dtype, str(getattr(tensor, "placements", "")), _cut(tensor))
            for name, tensor in self.tensors.items()
        )


@dataclass(frozen=True)
class ChunkPlace:
    """Where the bytes of one chunk of a tensor lie: object of the commit, and byte offset in it."""

    name: str
    offset: int


def flatten_state(state: Mapping[str, Any]) -> FlatState:
    """Take a nested state dict apart; lists of plain values stay whole.

    Raises:
        StateMismatch: something in it is neither a dense tensor nor plain JSON, or two names collide.
    """
    flat = FlatState({}, {})

    def check_new(name: str) -> None:
        if name in flat.tensors or name in flat.values:
            raise StateMismatch(f"two entries of the state are both called {name!r}: rename one")

    for name, container, key, value in _leaves("", state):
        if isinstance(value, torch.Tensor):
            for part_name, part in _parts(name, value):
                check_new(part_name)
                flat.tensors[part_name] = _checked(part_name, part)
        else:
            check_new(name)
            if isinstance(container, tuple):
                raise StateMismatch(
                    f"{name} is a {type(value).__name__} in a tuple that holds tensors or dicts: a plain value cannot "
                    "be put back there, and would never be loaded. Make the tuple a list."
                )
            flat.values[name] = Leaf(container, key, _plain(name, value))
    return flat


def render_state(metadata: Metadata, places: Mapping[tuple[str, torch.Size], ChunkPlace], flat: FlatState) -> bytes:
    """state.json for the tensors of `metadata` (all ranks') and the values of `flat` (this rank's)."""
    tensors = {}
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata), "only tensors are planned"
        chunks = []
        for chunk in stored.chunks:
            place = places[name, chunk.offsets]
            chunks.append([list(chunk.offsets), list(chunk.sizes), place.name, place.offset])
        tensors[name] = {"dtype": _DTYPE_NAMES[stored.properties.dtype], "size": list(stored.size), "chunks": chunks}
    values = {name: leaf.value for name, leaf in flat.values.items()}
    return json.dumps({"tensors": tensors, "values": values}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class StoredState:
    """state.json, parsed: the metadata that planners of torch.distributed.checkpoint want, the places, the values."""

    metadata: Metadata
    places: Mapping[tuple[str, torch.Size], ChunkPlace]
    values: Mapping[str, Any]


def parse_state(data: bytes) -> StoredState:
    """Raises ValueError, KeyError or TypeError for what `render_state` does not write."""
    body = json.loads(data)
    stored: dict[str, TensorStorageMetadata] = {}
    places: dict[tuple[str, torch.Size], ChunkPlace] = {}
    for name, tensor in body["tensors"].items():
        chunks = []
        for offsets, sizes, place, offset in tensor["chunks"]:
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            places[name, torch.Size(offsets)] = ChunkPlace(str(place), int(offset))
        properties = TensorProperties(dtype=DTYPES[tensor["dtype"]])
        stored[name] = TensorStorageMetadata(properties, torch.Size(tensor["size"]), chunks)
    return StoredState(Metadata(dict(stored)), places, body["values"])


def check_fits(flat: FlatState, stored: StoredState) -> None:
    """Raises StateMismatch when `flat` asks for what the commit does not have, or has in another shape or dtype."""
    known: Mapping[str, Any] = stored.metadata.state_dict_metadata
    missing = [name for name in flat.tensors if name not in known]
    missing += [name for name in flat.values if name not in stored.values]
    if missing:
        raise StateMismatch(
            f"{len(missing)} entries of the state are not in the commit, the first being {missing[:3]}. "
            f"It has {len(known)} tensors and {len(stored.values)} values: was it saved from another model?"
        )
    for name, tensor in flat.tensors.items():
        saved = known[name]
        if saved.size != tensor.shape or saved.properties.dtype != tensor.dtype:
            raise StateMismatch(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} here and {saved.properties.dtype} {tuple(saved.size)} "
                "in the commit. Build the model as it was when it was saved, and convert after loading."
            )


def check_whole(asked: Collection[str], stored: StoredState, partial: Partial) -> None:
    """Raises StateMismatch when the commit has what nobody asks for, so that it would be lost without a word.

    Args:
        asked: names that any rank's state has.
    """
    if partial is True:
        return
    spared = set(partial or ())
    known = [*stored.metadata.state_dict_metadata, *stored.values]
    lost = [name for name in known if name not in asked and name.partition(".")[0] not in spared]
    if lost:
        raise StateMismatch(
            f"{len(lost)} of the {len(known)} entries of the commit have no place in the state, the first being "
            f"{lost[:3]}: loading would lose them. An optimizer that has made no step has no moments yet: call "
            "checkpoints.torch_optimizer.make_moments(optimizer) before its state_dict(). To load a part on purpose, "
            "say partial=True."
        )


def set_values(flat: FlatState, stored: StoredState) -> None:
    """Put the commit's plain values where `flat` found the old ones."""
    for name, leaf in flat.values.items():
        leaf.container[leaf.key] = _like(leaf.value, stored.values[name])


def _leaves(prefix: str, container: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    pairs = container.items() if isinstance(container, Mapping) else enumerate(container)
    for key, value in pairs:
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) or (isinstance(value, list | tuple) and _holds_tensors_or_maps(value)):
            yield from _leaves(name, value)
        else:
            yield name, container, key, value


def _holds_tensors_or_maps(value: list[Any] | tuple[Any, ...]) -> bool:
    return any(
        isinstance(entry, torch.Tensor | MutableMapping)
        or (isinstance(entry, list | tuple) and _holds_tensors_or_maps(entry))
        for entry in value
    )


def _parts(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """A tensor by its name; one that is made of others as these, each by its attribute's."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            local = tensor.to_local()
        if _is_made_of_others(local):
            raise StateMismatch(
                f"{name} is sharded, and each rank's part is a {type(local).__name__}, which is made of other tensors: "
                "how these are sharded is not known here, and saved as one it would be rounded. Keep it in plain "
                "tensors, as AdamW does; or do not shard it."
            )
        yield name, tensor
    elif tensor.layout == torch.strided and _is_made_of_others(tensor):
        for attribute in tensor.__tensor_flatten__()[0]:  # type: ignore[attr-defined] # it is what it was asked for
            yield from _parts(f"{name}.{attribute}", getattr(tensor, attribute))
    else:
        yield name, tensor


def _is_made_of_others(tensor: Any) -> bool:
    return is_traceable_wrapper_subclass(tensor) and not isinstance(tensor, AsyncCollectiveTensor)


def _checked(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _DTYPE_NAMES:
        raise StateMismatch(
            f"{name} is a {tensor.layout} tensor of {tensor.dtype}: only dense tensors of {', '.join(DTYPES)} are saved"
        )
    return tensor


def _plain(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return _remade(value, [_plain(name, entry) for entry in value])
    raise StateMismatch(
        f"{name} is a {type(value).__name__}: a state holds tensors and plain JSON values, never pickles. "
        "Turn it into a tensor, a number or a string."
    )


def _remade(old: list[Any] | tuple[Any, ...], entries: list[Any]) -> Any:
    """A list or tuple of the old one's type; a named tuple takes its fields one by one."""
    return type(old)(*entries) if hasattr(old, "_fields") else type(old)(entries)


def _like(old: Any, new: Any) -> Any:
    """`new`, which was JSON, with tuples where `old` has them."""
    if not isinstance(old, list | tuple) or not isinstance(new, list):
        return new
    entries = [_like(before, after) for before, after in zip(old, new, strict=True)] if len(old) == len(new) else new
    return _remade(old, entries)


def _cut(tensor: torch.Tensor) -> Any:
    """Which part of the tensor this rank has, as far as its type says."""
    if isinstance(tensor, FlatShard):
        return tensor.start, tensor.local.numel()
    return id(getattr(tensor, "device_mesh", None))
