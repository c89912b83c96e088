"""An exported model written tensor by tensor: memory holds the largest of them, whatever the model's size.

Each tensor is read from the commit, or for merged adapters from the base model's files, made the type of the export,
and put into the shard that it belongs to. Where transformers stores tensors otherwise than the model has them, those
that are converted together are read together (conversions.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alpaca_jobs.training.adapters import adapted_layers
from alpaca_jobs.training.base_weights import BaseWeights, stored_name
from alpaca_jobs.training.conversions import Group, groups_to_save
from alpaca_jobs.weights.shards import ModelFolder
from alpaca_jobs.weights.sources import NAMES, TensorInfo

if TYPE_CHECKING:
    from checkpoints.keys import CommitRef
    from checkpoints.torch_bridge import Checkpointer

logger = logging.getLogger(__name__)

GROUP_BYTES = 64 * 2**20
"""Tensors read from the commit at a time; a larger one is read alone."""


@dataclass(frozen=True)
class StoredForm:
    """What a model's folder will hold, and of which of the model's tensors it is made.

    Attributes:
        groups: in the order they are written.
        wanted: what comes of them, in that order.
    """

    groups: Sequence[Group]
    wanted: Mapping[str, TensorInfo]


def stored_form(model: Any, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> StoredForm | None:
    """As transformers stores the model; numbers with a fraction become `dtype`, as module.to has it. None where that
    cannot be written part by part.

    Args:
        model: without adapters; no memory is needed.
        tensors: what the model has, by its names; types and shapes are looked at.
    """
    wanted: dict[str, TensorInfo] = {}
    groups = groups_to_save(model, sorted(tensors))
    for group in groups:
        try:
            made = group.convert(lambda name: as_written(tensors[name].to("meta"), dtype))
        except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as exc:
            logger.warning("The model cannot be written part by part (%s): it is put together in memory.", exc)
            return None
        if any(tensor.dtype not in NAMES for tensor in made.values()):
            return None
        wanted.update({name: TensorInfo(NAMES[one.dtype], tuple(one.shape)) for name, one in made.items()})
    return StoredForm(groups, wanted)


def as_written(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the type of the export."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def write_committed(
    folder: ModelFolder, tensors: Mapping[str, Tensor], form: StoredForm, *, dtype: torch.dtype,
    checkpointer: Checkpointer, ref: CommitRef,
) -> None:  # fmt: skip
    """Write a commit's tensors.

    Args:
        tensors: the types and shapes they were committed with; no memory is needed.

    Raises:
        Damaged: the commit's bytes are not what was committed.
    """
    for groups in _together(form.groups, tensors):
        read = {
            name: torch.empty_like(tensors[name], device="cpu") for group in groups for name in group.names
        }  # fmt: skip
        checkpointer.load(ref, {"model": read}, partial=True)
        for group in groups:
            write_group(folder, group, lambda name: as_written(read.pop(name), dtype))  # noqa: B023 - called at once


def write_group(folder: ModelFolder, group: Group, read: Callable[[str], Tensor]) -> None:
    """Write what a group of tensors becomes."""
    for name, value in group.convert(read).items():
        folder.append(name, value.contiguous().view(-1))


def _together(groups: Iterable[Group], tensors: Mapping[str, Tensor]) -> Iterator[list[Group]]:
    some: list[Group] = []
    size = 0
    for group in groups:
        num_bytes = sum(tensors[name].numel() * tensors[name].element_size() for name in group.names)
        if some and size + num_bytes > GROUP_BYTES:
            yield some
            some, size = [], 0
        some.append(group)
        size += num_bytes
    if some:
        yield some


@dataclass(frozen=True)
class Merged:
    """An adapted model without memory, and where its tensors are.

    Attributes:
        trained: the adapters, and embeddings that were trained, by the model's names.
    """

    model: Any
    base: BaseWeights
    trained: Mapping[str, Tensor]

    @torch.no_grad()
    def write(self, folder: ModelFolder, form: StoredForm, dtype: torch.dtype) -> None:
        """Write the base model with the adapters folded in, in float32 until the end."""
        layers = adapted_layers(self.model)
        names = {stored_name(name): name for name in self._named()}

        def read(plain: str) -> Tensor:
            name = names[plain]
            owner = name.rpartition(".base_layer.")[0]
            return as_written(self._folded(owner, layers[owner], name) if owner else self._value(name), dtype)

        for group in form.groups:
            write_group(folder, group, read)

    def _named(self) -> dict[str, Tensor]:
        persistent = set(self.model.state_dict())
        both = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {name: one.detach() for name, one in both if ".lora_" not in name and name in persistent}

    def _value(self, name: str) -> Tensor:
        if name in self.trained:
            return self.trained[name]
        like = self.model.get_parameter(name) if name in dict(self.model.named_parameters()) else None
        value = torch.empty_like(like if like is not None else self.model.get_buffer(name), device="cpu")
        self.base.fill(name, value)
        return value

    def _folded(self, owner: str, layer: Any, name: str) -> Tensor:
        """A tensor of an adapted layer: peft's own arithmetic, on a layer that has memory for as long."""
        layer.to_empty(device="cpu")
        for inner, param in layer.named_parameters():
            whole = f"{owner}.{inner}"
            if whole in self.trained:
                param.copy_(self.trained[whole])
            else:
                self.base.fill(whole, param)
        layer.merge()
        value: Tensor = layer.get_parameter(name.removeprefix(f"{owner}.")).detach().clone()
        layer.unmerge()
        layer.to(torch.device("meta"))
        return value


def write_configuration(model: Any, folder: Path) -> None:
    """Write a model's configuration as save_pretrained has it, without weights; it removes those that lie there."""
    model.save_pretrained(folder, state_dict={})
