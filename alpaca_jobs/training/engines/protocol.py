"""What the training loop needs of an engine, and what all engines share.

A step is: forward and backward of each micro batch, the norm, the update. Losses are scaled so that a mean over ranks
gives the gradient of the batch's loss; every engine takes that mean. State goes by the parameters' own names and whole
shapes, so that a checkpoint of one engine is continued by another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Engine(Protocol):
    """A model spread over ranks. All ranks call the same methods in the same order; `backward` to `step` is one step.

    Attributes:
        model: what is called for a forward pass; has the configuration and the parameters' names.
        mask_dtype: the type in which an additive attention mask is handed in.
        optimizers: torch's, whose steps alone change what they own of `state`; none where an engine cannot promise it.
    """

    model: Any
    mask_dtype: Any
    optimizers: Sequence[torch.optim.Optimizer]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro batch's gradients; with `is_last` the step's mean over ranks is complete, or under way."""
        ...

    def squared_norm(self) -> Tensor | float:
        """This rank's share of the squared norm of the step's gradients: the sum over ranks is the whole.

        A float64 scalar where the gradients lie, so that nobody has to wait for it; or a number.
        """
        ...

    def step(self, *, learning_rate: float, scale: float) -> None:
        """Update the parameters with gradients times `scale` (for clipping), and drop the gradients."""
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Within it, forward passes of the model as it is: without gradients and dropout. Afterwards nothing has
        changed; not inside a step.
        """
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds, nested by name: model, optimizer. Loading writes into these very tensors."""
        ...

    def after_load(self, state: dict[str, Any]) -> None:
        """Go on from what was loaded into a value of `state`."""
        ...

    def close(self) -> None:
        """Give back what outlives the object otherwise."""
        ...


@contextmanager
def without_training(model: Any) -> Iterator[None]:
    """No gradients, no dropout, no recomputing; the model is put back to how it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name; a tied one once."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def kept_tensors(model: nn.Module, *, adapters_only: bool) -> dict[str, Tensor]:
    """What of the model counts as state, by name; a tied parameter once.

    With `adapters_only` that is what is trained: the frozen rest comes from the base model.
    """
    if adapters_only:
        return {name: param.detach() for name, param in trained_parameters(model).items()}
    persistent = set(model.state_dict())
    tensors: dict[str, Tensor] = {name: param.detach() for name, param in model.named_parameters()}
    tensors.update({name: buffer for name, buffer in model.named_buffers() if name in persistent})
    return tensors
