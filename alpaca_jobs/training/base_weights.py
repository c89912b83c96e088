"""A base model's weights, read by each rank as far as it holds them: no rank ever has the whole model in memory.

`FSDP2` shards a model whose parameters have no memory yet (meta tensors); `BaseWeights.fill` then gives this rank's
shards memory and reads them, tensor by tensor, out of the safetensors files. The values are those that from_pretrained
gives, bit for bit. Where a model's tensors are not stored under the names and shapes it uses them by (from_pretrained
converts them then), `open_base` says so by returning None, and the whole model is loaded as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class BaseWeights:
    """Where each of a model's tensors is stored.

    Attributes:
        tensors: by the model's names.
    """

    tensors: Mapping[str, StoredTensor]

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Read this rank's part of every stored tensor; a tensor with more rows than stored (a larger vocabulary) gets
        their mean in each new row, as in Stanford Alpaca.
        """
        from safetensors import safe_open

        targets: dict[str, Tensor] = dict(model.named_buffers()) | dict(model.named_parameters())
        by_file: dict[Path, list[str]] = {}
        for name, stored in self.tensors.items():
            if name in targets:
                by_file.setdefault(stored.path, []).append(name)
        for path, names in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name in names:
                    _fill_one(targets[name], self.tensors[name].name, file)


def open_base(folder: Path, model: Any) -> BaseWeights | None:
    """Find every tensor of a model in a folder; None where names or shapes differ, so that only from_pretrained can.

    Raises:
        ModelError: the folder holds no safetensors, or broken ones.
    """
    if not any(folder.glob("*.safetensors")):
        return None
    stored = {tensor.name: tensor for tensor in stored_tensors(folder)}
    embeddings = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    found: dict[str, StoredTensor] = {}
    persistent = set(model.state_dict())
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    wanted.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    for name, tensor in wanted.items():
        plain = name.replace(".base_layer.", ".")  # as an adapted layer calls what it adapts
        if ".lora_" in name:
            continue
        here = stored.get(plain)
        if here is None:
            return None
        grows = id(tensor) in embeddings and here.shape[1:] == tuple(tensor.shape[1:])
        if here.shape != tuple(tensor.shape) and not (grows and here.shape[0] < tensor.shape[0]):
            return None
        found[name] = here
    return BaseWeights(found)


def give_memory(model: nn.Module, *, params: torch.device, buffers: torch.device) -> None:
    """Give every parameter without memory some, with nothing in it, and move the buffers."""
    model._apply(  # type: ignore[no-untyped-call]
        lambda tensor: torch.empty_like(tensor, device=params) if tensor.is_meta else tensor.to(buffers)
    )


def _fill_one(target: Tensor, name: str, file: Any) -> None:
    from alpaca_jobs.training.optimizer import local_of

    local, cut = local_of(target), _my_cut(target)
    if not local.numel():
        return
    stored = file.get_slice(name)
    rows = stored.get_shape()[0] if target.ndim else 0
    if target.ndim and rows < target.shape[0]:
        whole = file.get_tensor(name).float()
        mean = whole.mean(dim=0, keepdim=True).expand(target.shape[0] - rows, *target.shape[1:])
        local.copy_(torch.cat([whole, mean])[cut])
    elif target.ndim:
        local.copy_(stored[cut])
    else:
        local.copy_(file.get_tensor(name))


def _my_cut(target: Tensor) -> tuple[slice, ...]:
    """Which part of the whole tensor this rank holds."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if not isinstance(target, DTensor):
        return tuple(slice(0, size) for size in target.shape)
    sizes, offsets = compute_local_shape_and_global_offset(target.shape, target.device_mesh, target.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))
