"""A base model's weights, read tensor by tensor: no rank ever has the whole model in memory beside its own part.

A model is built with parameters that have no memory yet (meta tensors). `Fill` then gives each of them memory in the
type and on the device it is kept in, and reads what this rank holds of it out of the safetensors or .bin files. The
values are those that from_pretrained gives, bit for bit. Where a model's tensors are not stored under the names and
shapes it uses them by (from_pretrained converts them then), `open_base` says so by returning None, and the whole model
is loaded, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.adapters import reset_adapter, reset_adapters
from alpaca_jobs.training.weights import StoredTensor, stored_tensors


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Within this block new parameters are meta tensors; buffers stay what they are (positions are computed once)."""
    register = nn.Module.register_parameter

    def register_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _Files(Protocol):
    """Named tensors of a folder; none is read before it is asked for."""

    shapes: Mapping[str, tuple[int, ...]]

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        """A part of a tensor; all of it for ()."""
        ...


class _Safetensors:
    def __init__(self, folder: Path) -> None:
        self._stored: dict[str, StoredTensor] = {tensor.name: tensor for tensor in stored_tensors(folder)}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in self._stored.items()}

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        """Whole rows are read, not mapped: a mapped file counts as this process's memory until somebody needs it."""
        from safetensors import safe_open

        from alpaca_jobs.weights.sources import DTYPES, read_into

        one = self._stored[name]
        first, *others = cut or (slice(0, one.shape[0] if one.shape else 1),)
        has_whole_rows = all(part == slice(0, size) for part, size in zip(others, one.shape[1:], strict=False))
        if one.dtype not in DTYPES or not has_whole_rows or not one.shape:
            with safe_open(one.path, framework="pt") as file:
                part: Tensor = file.get_slice(name)[cut] if cut else file.get_tensor(name)
                return part
        begin, end = first.start, min(first.stop, one.shape[0])
        row_bytes = (one.end - one.begin) // max(one.shape[0], 1)
        if not (end - begin) * row_bytes:
            return torch.empty(end - begin, *one.shape[1:], dtype=DTYPES[one.dtype])
        data = bytearray((end - begin) * row_bytes)
        with one.path.open("rb", buffering=0) as file:
            file.seek(one.begin + begin * row_bytes)
            if read_into(file, data) < len(data):
                raise ModelError(f"{one.path} ends inside {name}: it was cut short. Copy or download it again.")
        return torch.frombuffer(data, dtype=DTYPES[one.dtype]).view(end - begin, *one.shape[1:])


class _Pickled:
    def __init__(self, folder: Path) -> None:
        from alpaca_jobs.weights.sources import PickleSource

        self._source = PickleSource(folder)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: info.shape for name, info in self._source.tensors.items()
        }  # fmt: skip

    def part(self, name: str, cut: tuple[slice, ...]) -> Tensor:
        whole = self._source.mapped(name)
        return whole[cut] if cut else whole


@dataclass(frozen=True)
class BaseWeights:
    """A base model's stored tensors, for a model that uses them under their own names.

    Attributes:
        names: of the tensors that the model has, without its adapters.
    """

    files: _Files
    names: frozenset[str]

    @torch.no_grad()
    def fill(self, name: str, target: Tensor) -> None:
        """Read what `target` holds of the model's tensor `name`; an adapter's is left as it is.

        A tensor with more rows than stored (a larger vocabulary) gets their mean in each new row, as in Stanford
        Alpaca.
        """
        from alpaca_jobs.training.optimizer import local_of

        name = stored_name(name)
        local, cut = local_of(target), _my_cut(target)
        if name not in self.names or not local.numel():
            return
        shape = self.files.shapes[name]
        if target.ndim and shape[0] < target.shape[0]:
            whole = self.files.part(name, ()).float()
            mean = whole.mean(dim=0, keepdim=True).expand(target.shape[0] - shape[0], *target.shape[1:])
            local.copy_(torch.cat([whole, mean])[cut])
        else:
            local.copy_(self.files.part(name, cut))


def stored_name(name: str) -> str:
    """What a base model's files call a tensor of an adapted model."""
    return name.replace(".base_layer.", ".")


def open_base(folder: Path, model: Any) -> BaseWeights | None:
    """Find every tensor of a model in a folder; None where names or shapes differ, so that only from_pretrained can.

    Raises:
        ModelError: the folder holds broken safetensors.
    """
    files: _Files
    if any(folder.glob("*.safetensors")):
        files = _Safetensors(folder)
    else:
        try:
            files = _Pickled(folder)
        except ModelError:  # from_pretrained has the better words, or another way
            return None
    embeddings = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    persistent = set(model.state_dict())
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    wanted.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    for name, tensor in wanted.items():
        here = files.shapes.get(name)
        if here is None:
            return None
        grows = id(tensor) in embeddings and here[1:] == tuple(tensor.shape[1:])
        if here != tuple(tensor.shape) and not (grows and here[0] < tensor.shape[0]):
            return None
    return BaseWeights(files, frozenset(wanted))


@dataclass(frozen=True)
class Fill:
    """Gives a model without memory its memory and its first values, before or after it is spread over ranks.

    Attributes:
        source: None leaves weights as they come, for a caller that loads a checkpoint into them.
        adapters_seed: of the adapters' first values; None: there are none.
        params, buffers: where they go.
    """

    source: BaseWeights | None
    adapters_seed: int | None
    params: torch.device
    buffers: torch.device

    def sharded(self, model: nn.Module) -> None:
        """Fill this rank's shards of a model that FSDP2 has sharded."""
        model._apply(  # type: ignore[no-untyped-call]
            lambda tensor: torch.empty_like(tensor, device=self.params) if tensor.is_meta else tensor.to(self.buffers)
        )
        if self.source is not None:
            for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
                self.source.fill(name, tensor)
        if self.adapters_seed is not None:
            reset_adapters(model, self.adapters_seed)

    def one_by_one(self, model: nn.Module, *, read: bool = True) -> Iterator[nn.Parameter]:
        """Fill a whole model, parameter by parameter: each is handed out before the next one has memory.

        Args:
            read: whether parameters are given values; a rank that is sent them needs none of its own.
        """
        self._move_buffers(model)
        places: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in model.modules():
            for key, param in module._parameters.items():
                places.setdefault(id(param), []).append((module, key))
        for name, param in list(model.named_parameters()):
            filled = nn.Parameter(torch.empty_like(param, device=self.params), requires_grad=param.requires_grad)
            for module, key in places[id(param)]:  # several where it is tied
                module._parameters[key] = filled
            if read and self.source is not None:
                self.source.fill(name, filled)
            if read and self.adapters_seed is not None:
                reset_adapter(name, filled, self.adapters_seed)
            yield filled

    def _move_buffers(self, model: nn.Module) -> None:
        for prefix, module in model.named_modules():
            for key, buffer in module._buffers.items():
                if buffer is None:
                    continue
                moved = module._buffers[key] = buffer.to(self.buffers)
                if self.source is not None:
                    self.source.fill(f"{prefix}.{key}" if prefix else key, moved)


def _my_cut(target: Tensor) -> tuple[slice, ...]:
    """Which part of the whole tensor this rank holds."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(target, DTensor):
        return tuple(slice(0, size) for size in target.shape)
    sizes, offsets = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
