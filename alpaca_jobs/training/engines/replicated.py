"""The whole model on every rank: `ddp`, where gradients are averaged over ranks, and `single`, where there is one rank.

In bfloat16 the model computes with bfloat16 parameters; gradients are summed, and parameters updated, in float32 copies
of what is trained. Not torch's DistributedDataParallel: it cuts its buckets anew after the first step, and sums over
more than two ranks then come in another order, so that a resume would lose bits. Here the buckets never change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.engines.protocol import kept_tensors, trained_parameters, without_training
from alpaca_jobs.training.optimizer import ShardedAdamW

BUCKET_BYTES = 32 * 2**20
"""Gradients that are reduced together: enough for full bandwidth, few enough to begin while others are computed."""


class Replicated:
    """The protocol's docstrings (protocol.py) hold. Exact: the same ranks give the same bits after any resume."""

    def __init__(self, model: Any, train: TrainSpec, *, world_size: int) -> None:
        """Take a model whose parameters are the same on every rank."""
        self.model = model
        self._world_size = world_size
        self._adapters_only = train.method == "lora"
        self._params = trained_parameters(model)
        compute = getattr(torch, train.dtype)
        self._in_float32 = compute is torch.float32
        self._masters: dict[str, Tensor] = {
            name: param.detach() if self._in_float32 else param.detach().float().clone()
            for name, param in self._params.items()
        }
        for param in model.parameters():  # not the buffers: positions would lose digits that matter
            param.data = param.data.to(compute)
        self.mask_dtype = compute
        self._optimizer = ShardedAdamW(self._masters, train)
        self.optimizers: Sequence[torch.optim.Optimizer] = (self._optimizer.adamw,)
        self._gradients: dict[str, Tensor] = {}
        self._mean = _MeanOverRanks({name: master.shape for name, master in self._masters.items()}, world_size)
        self._is_last = False
        for name, param in self._params.items():
            collect = partial(self._collect, name)
            param.register_post_accumulate_grad_hook(collect)  # type: ignore[no-untyped-call]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """As the protocol says."""
        self._is_last = is_last and self._world_size > 1
        loss.backward()  # type: ignore[no-untyped-call]

    def squared_norm(self) -> Tensor:
        """As the protocol says; every rank has the whole gradient."""
        if self._world_size > 1:
            self._gradients = self._mean.finish(self._gradients)
        return self._optimizer.take_gradients(self._gradients) / self._world_size

    def step(self, *, learning_rate: float, scale: float) -> None:
        """As the protocol says."""
        self._optimizer.step(learning_rate=learning_rate, scale=scale)
        self._gradients = {}
        for param in self._params.values():
            param.grad = None
        self._refresh()

    def evaluating(self) -> AbstractContextManager[None]:
        """As the protocol says."""
        return without_training(self.model)

    def state(self) -> dict[str, Any]:
        """As the protocol says."""
        model = {**kept_tensors(self.model, adapters_only=self._adapters_only), **self._masters}
        return {"model": model, "optimizer": self._optimizer.state()}

    def after_load(self, state: dict[str, Any]) -> None:
        """As the protocol says."""
        self._refresh()

    def close(self) -> None:
        """Nothing."""

    def _collect(self, name: str, _: Tensor) -> None:
        """A parameter's gradient of one micro batch is there."""
        param = self._params[name]
        assert param.grad is not None
        if self._in_float32:
            self._gradients[name] = param.grad
        elif name in self._gradients:
            self._gradients[name] += param.grad
            param.grad = None
        else:
            self._gradients[name], param.grad = param.grad.float(), None
        if self._is_last:
            self._mean.ready(name, self._gradients)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Make the parameters that the model computes with from their float32 copies."""
        if not self._in_float32:
            torch._foreach_copy_(list(self._params.values()), list(self._masters.values()))


class _MeanOverRanks:
    """Means of gradients over ranks, bucket by bucket, begun while the backward pass goes on. Collective.

    Buckets go from the last parameter to the first, as gradients do, and are reduced in that order on every rank.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], world_size: int) -> None:
        self._shapes, self._world_size = shapes, world_size
        self._buckets = _cut(shapes)
        self._ready: set[str] = set()
        self._under_way: list[tuple[Tensor, Any]] = []

    def ready(self, name: str, gradients: Mapping[str, Tensor]) -> None:
        """A gradient is complete on this rank."""
        self._ready.add(name)
        while len(self._under_way) < len(self._buckets) and self._ready.issuperset(self._next()):
            self._begin(gradients)

    def finish(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The means of all gradients; one that this rank does not have counts as zero."""
        while len(self._under_way) < len(self._buckets):
            self._begin(gradients)
        means: dict[str, Tensor] = {}
        for names, (flat, work) in zip(self._buckets, self._under_way, strict=True):
            work.wait()
            flat /= self._world_size
            parts = torch.split(flat, [self._shapes[name].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                means[name] = part.view(self._shapes[name])
        self._ready, self._under_way = set(), []
        return {name: means[name] for name in self._shapes}

    def _next(self) -> Sequence[str]:
        return self._buckets[len(self._under_way)]

    def _begin(self, gradients: Mapping[str, Tensor]) -> None:
        like = next(iter(gradients.values()))
        flat = torch.cat(
            [
                gradients[name].reshape(-1) if name in gradients else like.new_zeros(self._shapes[name].numel())
                for name in self._next()
            ]
        )
        self._under_way.append((flat, dist.all_reduce(flat, async_op=True)))


def _cut(shapes: Mapping[str, torch.Size]) -> list[list[str]]:
    buckets: list[list[str]] = []
    size = BUCKET_BYTES
    for name in reversed(list(shapes)):
        num_bytes = 4 * shapes[name].numel()
        if size + num_bytes > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(name)
        size += num_bytes
    return buckets
