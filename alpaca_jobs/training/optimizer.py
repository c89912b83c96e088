"""AdamW over this rank's shards of the parameters, and gradient clipping over all ranks.

The optimizer works on plain local tensors that share memory with FSDP's sharded parameters: on small models the
dispatch of sharded tensors costs more than the arithmetic, and on large ones the fused kernel is used either way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alpaca_jobs.spec import TrainSpec


class ShardedAdamW:
    """AdamW on the local shards of a sharded model's trainable parameters.

    State exists from the start, so a checkpoint can be loaded into it before the first step.
    """

    def __init__(self, model: nn.Module, train: TrainSpec) -> None:
        self._params = {name: param for name, param in model.named_parameters() if param.requires_grad}
        self._locals = {name: local_of(param) for name, param in self._params.items()}
        self.exp_avg = {name: torch.zeros_like(param) for name, param in self._params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(param) for name, param in self._params.items()}
        device = next(iter(self._locals.values())).device
        self.steps = torch.zeros(len(self._params), dtype=torch.float32, device=device)
        # As in the published recipe (transformers' Trainer): biases and norms, which have one dimension, do not decay.
        decayed = [local for name, local in self._locals.items() if self._params[name].ndim > 1]
        others = [local for name, local in self._locals.items() if self._params[name].ndim <= 1]
        self._adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": train.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.adam_eps,
            fused=True,
        )
        for index, (name, local) in enumerate(self._locals.items()):
            self._adamw.state[local] = {
                "step": self.steps[index],
                "exp_avg": local_of(self.exp_avg[name]),
                "exp_avg_sq": local_of(self.exp_avg_sq[name]),
            }

    def take_gradients(self) -> float:
        """Hand the sharded gradients to the local tensors; returns this rank's part of the squared norm."""
        for name, param in self._params.items():
            self._locals[name].grad = None if param.grad is None else local_of(param.grad)
        norms = torch._foreach_norm(self._gradients())
        return float(torch.stack(norms).double().square().sum()) if norms else 0.0

    def step(self, *, learning_rate: float, scale: float) -> None:
        """Scale the gradients (for clipping; 1.0 leaves them alone), update the parameters, and drop the gradients."""
        gradients = self._gradients()
        if scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        for name, param in self._params.items():
            self._locals[name].grad = param.grad = None

    def _gradients(self) -> list[Tensor]:
        return [local.grad for local in self._locals.values() if local.grad is not None and local.numel()]


def local_of(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, detached, in the same memory."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


def clip_scale(squared_norm: float, max_norm: float) -> float:
    """Factor that brings gradients of this squared norm to `max_norm`, at most 1.

    Source: torch.nn.utils.clip_grad_norm_, which adds 1e-6 to the norm.
    """
    return min(1.0, max_norm / (math.sqrt(squared_norm) + 1e-6))
