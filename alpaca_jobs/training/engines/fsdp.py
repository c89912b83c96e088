"""FSDP2: parameters, gradients and optimizer state in shards, gathered layer by layer while they are needed.

Parameters that are trained are float32 in memory whatever `train.dtype` says; FSDP casts them for the forward and
backward pass and reduces gradients in float32. `sharding: hybrid` shards inside each node and keeps a copy on every
node, so that layers are gathered over the fast links only. `cpu_offload` keeps shards and optimizer in host memory.

Where a step has several micro batches, gradients are reduced once, after the last, as long as whole gradients in
float32 are a small part of the memory (HELD_SHARE): FSDP then keeps them in one piece on every rank. Larger models
reduce each micro batch into shards, so that no whole gradient is ever kept; with `sharding: hybrid` the copies' sum,
over the slow links, is still taken once a step. One micro batch a step, which is what the examples come to on their
GPUs, is reduced once in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.base_weights import Fill
from alpaca_jobs.training.engines.protocol import kept_tensors, trained_parameters, without_training
from alpaca_jobs.training.optimizer import ShardedAdamW

HELD_SHARE = 0.15
"""Of a GPU's memory, for whole gradients between micro batches: 12 GB of 80, which is models of up to 3 billion
parameters. LLaMA-7B's are 27 GB, beside 14 GB of states on 8 GPUs and the activations of 2,000 tokens, 18 GB."""
HELD_BYTES_ON_CPU = 2**30


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
        self._holds = not train.cpu_offload and holds_gradients(self._params.values(), device)
        self._optimizer = ShardedAdamW(self._params, train)
        self.optimizers: Sequence[torch.optim.Optimizer] = (self._optimizer.adamw,)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """As the protocol says; when gradients are reduced is said at the top of this file."""
        if self._holds:
            self.model.set_requires_gradient_sync(is_last)
        elif self._replicas > 1:
            self.model.set_requires_all_reduce(is_last)
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


def holds_gradients(params: Iterable[Tensor], device: torch.device) -> bool:
    """Whether whole float32 gradients of these parameters may lie on every rank until a step's last micro batch."""
    limit: float = HELD_BYTES_ON_CPU
    if device.type == "cuda":
        limit = HELD_SHARE * torch.cuda.get_device_properties(device).total_memory
    return 4 * sum(param.numel() for param in params) <= limit


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
