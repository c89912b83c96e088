"""A base model's weights, read tensor by tensor: no rank ever has the whole model in memory beside its own part.

A model is built with parameters that have no memory yet (meta tensors). `Fill` then gives each of them memory in the
type and on the device it is kept in, and reads what this rank holds of it out of the safetensors or .bin files. The
values are those that from_pretrained gives, bit for bit. Tensors that are stored otherwise than the model uses them are
converted a group at a time, as from_pretrained would (conversions.py). Where even that does not give every tensor of
the model, `open_base` says so by returning None, and the whole model is loaded, on the CPU.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.adapters import reset_adapter, reset_adapters
from alpaca_jobs.training.base_files import ConvertedFiles, Files, PickledFiles, SafetensorsFiles
from alpaca_jobs.training.conversions import groups_to_load

logger = logging.getLogger(__name__)


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
    """A base model's tensors as a model has them.

    Attributes:
        names: of the tensors that the model has, without its adapters.
    """

    files: Files
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
    """Find every tensor of a model in a folder; None where only from_pretrained can make them of what is there.

    Raises:
        ModelError: the folder holds broken safetensors.
    """
    files: Files
    if any(folder.glob("*.safetensors")):
        files = SafetensorsFiles(folder)
    else:
        try:
            files = PickledFiles(folder)
        except ModelError:  # from_pretrained has the better words, or another way
            return None
    groups = groups_to_load(model, files.shapes)
    try:
        converted = ConvertedFiles(files, groups)
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as exc:
        logger.warning("The weights in %s cannot be converted part by part (%s): they are loaded whole.", folder, exc)
        return None
    embeddings = {id(one.weight) for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    persistent = set(model.state_dict())
    wanted: dict[str, Tensor] = dict(model.named_parameters())
    wanted.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    for name, tensor in wanted.items():
        here = converted.shapes.get(name)
        if here is None:
            return None
        grows = id(tensor) in embeddings and here[1:] == tuple(tensor.shape[1:])
        if here != tuple(tensor.shape) and not (grows and here[0] < tensor.shape[0]):
            return None
    _tell_unused(folder, model, files.shapes.keys() - {name for group in groups for name in group.names})
    return BaseWeights(converted, frozenset(wanted))


def _tell_unused(folder: Path, model: Any, unused: set[str]) -> None:
    """Warn of tensors that are in the files and nowhere in the model: its config.json may say too little."""
    known = (*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"rotary_emb\.inv_freq$")
    left = sorted(name for name in unused if not any(re.search(pattern, name) for pattern in known))
    if left:
        logger.warning(
            "%d tensors in %s have no place in the model that its config.json describes, and are left out: %s. If they "
            "belong to it, correct config.json (attention_bias, num_hidden_layers).",
            len(left), folder, ", ".join(left[:3]) + (", ..." if len(left) > 3 else ""),
        )  # fmt: skip


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
