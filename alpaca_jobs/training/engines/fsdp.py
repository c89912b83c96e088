"""FSDP2: parameters, gradients and optimizer state in shards, gathered layer by layer while they are needed.

Parameters that are trained are float32 in memory whatever `train.dtype` says; FSDP casts them for the forward and
backward pass and reduces gradients in float32. `sharding: hybrid` shards inside each node and keeps a copy on every
node, so that layers are gathered over the fast links only. `cpu_offload` keeps shards and optimizer in host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.base_weights import Fill
from alpaca_jobs.training.engines.protocol import kept_tensors, trained_parameters, without_training
from alpaca_jobs.training.optimizer import ShardedAdamW


class Fsdp:
    """The protocol's docstrings (protocol.py) hold. Exact: the same ranks give the same bits after any resume."""

    def __init__(
        self,
        model: Any,
        train: TrainSpec,
        *,
        device: torch.device,
        ranks_per_node: int,
        fill: Fill | None = None,
    ) -> None:
        """Shard the model in place, and fill it if it has no memory yet."""
        self._adapters_only = train.method == "lora"
        self._replicas = shard_model(model, train, device=device, ranks_per_node=ranks_per_node)
        if fill is not None:
            fill.sharded(model)
        self.model = model
        self.mask_dtype = torch.float32  # cast with the other inputs
        self._params = trained_parameters(model)
        self._optimizer = ShardedAdamW(self._params, train)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """As the protocol says; every micro batch is reduced at once, so no whole gradient is ever kept."""
        loss.backward()  # type: ignore[no-untyped-call]

    def squared_norm(self) -> Tensor:
        """As the protocol says; copies of a shard count once."""
        gradients = {name: param.grad for name, param in self._params.items()}
        return self._optimizer.take_gradients(gradients) / self._replicas

    def step(self, *, learning_rate: float, scale: float) -> None:
        """As the protocol says."""
        self._optimizer.step(learning_rate=learning_rate, scale=scale)
        for param in self._params.values():
            param.grad = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """As the protocol says. A forward pass without a backward pass leaves the outermost parameters gathered, where
        a checkpoint would find whole tensors in place of shards; so they are given back.
        """
        from torch.distributed.fsdp import FSDPModule

        with without_training(self.model):
            yield
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def state(self) -> dict[str, Any]:
        """As the protocol says."""
        model = kept_tensors(self.model, adapters_only=self._adapters_only)
        return {"model": model, "optimizer": self._optimizer.state()}

    def after_load(self, state: dict[str, Any]) -> None:
        """Nothing: the loaded tensors are the parameters."""

    def close(self) -> None:
        """Nothing."""


def shard_model(model: Any, train: TrainSpec, *, device: torch.device, ranks_per_node: int) -> int:
    """Shard every decoder layer and the rest over the default process group, in place; returns the copies of a shard.

    One rank goes the same way: its numbers then come from the same code as on many.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    world_size = torch.distributed.get_world_size()
    replicas = 1
    if train.sharding == "hybrid":
        if world_size % ranks_per_node:
            raise TrainingError(
                f"train.sharding is hybrid, but {world_size} ranks are not whole nodes of {ranks_per_node}. Set "
                "sharding: full."
            )
        replicas = world_size // ranks_per_node
    # A mesh of one dimension even where there are several nodes of one copy each: sums then keep their order.
    mesh = (
        init_device_mesh(device.type, (replicas, ranks_per_node), mesh_dim_names=("copies", "shards"))
        if replicas > 1
        else init_device_mesh(device.type, (world_size,))
    )
    policy = MixedPrecisionPolicy()
    if train.dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if train.cpu_offload else OffloadPolicy()
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # FSDP wants inner modules first
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
    fully_shard(model, mesh=mesh, mp_policy=policy, offload_policy=offload)
    return replicas
