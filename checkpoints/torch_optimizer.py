"""make_moments: what the first step would begin from, so that a commit's moments have a place to be loaded into.

    optimizer = torch.optim.AdamW(model.parameters())
    make_moments(optimizer)                                            # exp_avg, exp_avg_sq: zeros; step: 0
    state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
    checkpoints.resume(state)

torch's optimizers make their moments in the first step, so before it `state_dict()` has nowhere to put a commit's.
"""

from __future__ import annotations

from typing import Any

import torch

_STILL = ("lr", "weight_decay")
"""What a step would change parameters and moments by even where all gradients are zero."""


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Have `optimizer` make its moments, by a step that changes nothing: no gradient, no learning rate, no decay.

    Training from here gives the bits it gives without this call, for Adam, AdamW, RMSprop and SGD (whose dampening has
    to be 0 for that, as it is by default). Gradients that are there are kept. One that has made a step is left alone.
    Works for sharded parameters (DTensor) too.

    Args:
        optimizer: any whose first step makes zeros of a parameter's shape.
    """
    if optimizer.state:
        return
    params = [param for group in optimizer.param_groups for param in group["params"]]
    kept_grads = [param.grad for param in params]
    kept_rates = [{name: group[name] for name in _STILL if name in group} for group in optimizer.param_groups]
    try:
        for param in params:
            param.grad = torch.zeros_like(param) if param.requires_grad else None
        for group in optimizer.param_groups:
            group.update({name: _zero_like(group[name]) for name in _STILL if name in group})
        optimizer.step()
    finally:
        for param, grad in zip(params, kept_grads, strict=True):
            param.grad = grad
        for group, rates in zip(optimizer.param_groups, kept_rates, strict=True):
            group.update(rates)
    for kept in optimizer.state.values():
        if "step" in kept:
            kept["step"] = _zero_like(kept["step"])


def unwrapped(optimizer: Any) -> Any:
    """torch's optimizer inside of accelerate's, whose step goes through the loss scale of fp16; any other as it is."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _zero_like(value: Any) -> Any:
    if value is None:  # Adafactor's rate, where it finds its own
        return None
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else type(value)(0)
