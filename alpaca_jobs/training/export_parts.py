"""An exported model written tensor by tensor: memory holds the largest of them, whatever the model's size.

Each tensor is read from the commit, or for merged adapters from the base model's files, made the type of the export,
and put into the shard that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alpaca_jobs.training.adapters import adapted_layers
from alpaca_jobs.training.base_weights import BaseWeights, stored_name
from alpaca_jobs.weights.shards import ModelFolder
from alpaca_jobs.weights.sources import DTYPES, NAMES, TensorInfo

if TYPE_CHECKING:
    from checkpoints.keys import CommitRef
    from checkpoints.torch_bridge import Checkpointer

GROUP_BYTES = 64 * 2**20
"""Tensors read from the commit at a time; a larger one is read alone."""


def is_stored_as_named(model: Any, tensors: Mapping[str, Tensor]) -> bool:
    """Whether transformers stores a model's tensors under the names and shapes the model has them by."""
    from transformers.core_model_loading import revert_weight_conversion

    without_memory = {name: tensor.to("meta") for name, tensor in tensors.items()}
    stored = revert_weight_conversion(model, dict(without_memory))
    same = stored.keys() == tensors.keys() and all(stored[name].shape == tensors[name].shape for name in stored)
    return same and all(tensor.dtype in NAMES for tensor in tensors.values())


def infos(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, TensorInfo]:
    """What will be written, sorted by name; numbers with a fraction become `dtype`, as module.to has it."""
    return {
        name: TensorInfo(NAMES[dtype if tensor.is_floating_point() else tensor.dtype], tuple(tensor.shape))
        for name, tensor in sorted(tensors.items())
    }


def write_committed(
    folder: ModelFolder, tensors: Mapping[str, Tensor], wanted: Mapping[str, TensorInfo], *, checkpointer: Checkpointer,
    ref: CommitRef,
) -> None:  # fmt: skip
    """Write a commit's tensors.

    Args:
        tensors: the types and shapes they were committed with; no memory is needed.

    Raises:
        Damaged: the commit's bytes are not what was committed.
    """
    for names in _groups(tensors, wanted):
        group = {name: torch.empty_like(tensors[name], device="cpu") for name in names}
        checkpointer.load(ref, {"model": group}, partial=True)
        for name in names:
            folder.append(name, group.pop(name).to(DTYPES[wanted[name].dtype]).view(-1))


def _groups(tensors: Mapping[str, Tensor], wanted: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in wanted:
        num_bytes = tensors[name].numel() * tensors[name].element_size()
        if names and size + num_bytes > GROUP_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += num_bytes
    if names:
        yield names


@dataclass(frozen=True)
class Merged:
    """An adapted model without memory, and where its tensors are.

    Attributes:
        trained: the adapters, and embeddings that were trained, by the model's names.
    """

    model: Any
    base: BaseWeights
    trained: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """What the merged model has, by the names it will have; without memory."""
        return {stored_name(name): tensor for name, tensor in self._named().items()}

    @torch.no_grad()
    def write(self, folder: ModelFolder, wanted: Mapping[str, TensorInfo]) -> None:
        """Write the base model with the adapters folded in, in float32 until the end."""
        layers = adapted_layers(self.model)
        names = {stored_name(name): name for name in self._named()}
        for plain, info in wanted.items():
            name = names[plain]
            owner = name.rpartition(".base_layer.")[0]
            value = self._folded(owner, layers[owner], name) if owner else self._value(name)
            folder.append(plain, value.to(DTYPES[info.dtype]).contiguous().view(-1))

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
