"""AdamW over this rank's shards of the parameters, and gradient clipping over all ranks.

The optimizer works on plain local tensors that share memory with an engine's parameters: on small models the
dispatch of sharded tensors costs more than the arithmetic, and on large ones the fused kernel is used either way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alpaca_jobs.spec import TrainSpec


class ShardedAdamW:
    """AdamW on the local parts of parameters: shards of an engine, or whole tensors.

    State exists from the start, so a checkpoint can be loaded into it before the first step.

    Args:
        params: float32, by name; what they hold is updated in place.

    Attributes:
        adamw: torch's; nothing but its step changes parameters and moments.
    """

    def __init__(self, params: Mapping[str, Tensor], train: TrainSpec) -> None:
        self._locals = {name: local_of(param) for name, param in params.items()}
        self.exp_avg = {name: torch.zeros_like(param) for name, param in params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(param) for name, param in params.items()}
        device = next(iter(self._locals.values())).device
        self.steps = torch.zeros(len(params), dtype=torch.float32, device=device)
        decayed, others = split_by_decay(params)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [self._locals[name] for name in decayed], "weight_decay": train.weight_decay},
                {"params": [self._locals[name] for name in others], "weight_decay": 0.0},
            ],
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            fused=True,
        )
        for index, (name, local) in enumerate(self._locals.items()):
            self.adamw.state[local] = {
                "step": self.steps[index],
                "exp_avg": local_of(self.exp_avg[name]),
                "exp_avg_sq": local_of(self.exp_avg_sq[name]),
            }

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: the moments by name, and the steps of each parameter in their order."""
        return {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq, "steps": self.steps}

    def take_gradients(self, gradients: Mapping[str, Tensor | None]) -> Tensor:
        """Hand gradients to the local tensors; returns the squared norm of their local parts, a float64 scalar where
        they lie: nobody waits for it here.
        """
        for name, local in self._locals.items():
            given = gradients.get(name)
            local.grad = None if given is None else local_of(given)
        norms = torch._foreach_norm(self._gradients())
        return torch.stack(norms).double().square().sum() if norms else torch.zeros((), dtype=torch.float64)

    def step(self, *, learning_rate: float, scale: float) -> None:
        """Scale the gradients (for clipping; 1.0 leaves them alone), update the parameters, and drop the gradients."""
        gradients = self._gradients()
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        for local in self._locals.values():
            local.grad = None

    def _gradients(self) -> list[Tensor]:
        return [local.grad for local in self._locals.values() if local.grad is not None and local.numel()]


def split_by_decay(params: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Names of parameters that decay and of those that do not.

    As in the published recipe (transformers' Trainer): biases and norms, which have one dimension, do not.
    """
    decayed = [name for name, param in params.items() if param.ndim > 1]
    return decayed, [name for name, param in params.items() if param.ndim <= 1]


def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, detached, in the same memory."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def clip_scale(squared_norm: float, max_norm: float) -> float:
    """Factor that brings gradients of this squared norm to `max_norm`, at most 1.

    Source: torch.nn.utils.clip_grad_norm_, which adds 1e-6 to the norm.
    """
    return min(1.0, max_norm / (math.sqrt(squared_norm) + 1e-6))
