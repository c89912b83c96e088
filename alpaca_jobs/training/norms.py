"""RMS norms in one kernel each, forward and backward, on a GPU.

transformers writes an RMS norm as eight operations, each of which reads and writes all activations: about a twelfth of
a step at a width of 4,096 by the bytes that go through memory (benchmarks/gpu_roofline.py). torch has all of it in one
operator. What it rounds differs: the weight is multiplied before a result becomes bfloat16, not after.

Where torch.compile is on, it fuses the eight operations itself.
Shapes: H = hidden size, or that of a head where heads are normalised.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPSILONS = ("variance_epsilon", "eps")
_ROUNDING = 1e-5  # relative, in float32; another formula, such as a weight of 1 + w, is off by more than 1e-2
_Kind = tuple[type[nn.Module], float, int]


def fuse_norms(model: nn.Module) -> int:
    """Give a model's RMS norms torch's operator, in place; returns how many. Parameters may have no memory yet.

    A norm is one whose class is called so, that has one weight and nothing else, and that, tried out with made-up
    numbers on the CPU, is torch's to rounding.
    """
    found: dict[_Kind, bool] = {}
    count = 0
    for module in model.modules():
        epsilon = _epsilon(module)
        if epsilon is None:
            continue
        size = _weight(module).numel()
        kind = (type(module), epsilon, size)
        if kind not in found:
            found[kind] = _is_plain(module, epsilon, size)
        if found[kind]:
            module.forward = partial(_normalised, module, epsilon)
            count += 1
    return count


def _epsilon(module: nn.Module) -> float | None:
    """What a norm adds to the mean square; None for what is no RMS norm, by its class and what it has."""
    names = [name for name, _ in module.named_parameters()]
    if not type(module).__name__.endswith("RMSNorm") or names != ["weight"] or _weight(module).ndim != 1:
        return None
    given = next((getattr(module, name) for name in _EPSILONS if hasattr(module, name)), None)
    return given if isinstance(given, float) else None


def _normalised(module: nn.Module, epsilon: float, hidden: Tensor) -> Tensor:
    weight = _weight(module)  # looked up here and not kept: engines put others in its place
    return functional.rms_norm(hidden, weight.shape, weight, epsilon)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def _is_plain(module: nn.Module, epsilon: float, size: int) -> bool:
    """Whether a norm computes x / sqrt(mean(x^2) + epsilon) * weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(size, generator=generator) + 0.5
    hidden = torch.randn(4, size, generator=generator) * torch.tensor([[1e-3], [0.1], [1.0], [30.0]])
    try:
        its = torch.func.functional_call(module, {"weight": weight}, (hidden,))
    except (RuntimeError, TypeError, AttributeError):
        return False
    wanted = functional.rms_norm(hidden, (size,), weight, epsilon)
    return isinstance(its, Tensor) and its.shape == wanted.shape and torch.allclose(its, wanted, rtol=_ROUNDING)
