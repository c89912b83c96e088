"""Steps: a StoreCallback driven by hand, as a Trainer drives it, around a small model; for ranks that are threads."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from checkpoints.torch_trainer import StoreCallback


@dataclass
class State:
    """What of TrainerState the callback looks at."""

    global_step: int = 0
    max_steps: int = 100
    epoch: float = 0.5
    is_world_process_zero: bool = True


class Steps:
    """`begin()`, then `step()` as often as wanted, then `end()`."""

    def __init__(self, callback: StoreCallback) -> None:
        self.callback, self.state = callback, State()
        self.model = torch.nn.Linear(2, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(self.optimizer)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "lr_scheduler": schedule}
        self._args = SimpleNamespace(deepspeed=None, fsdp=None)

    def begin(self) -> None:
        self._tell("on_train_begin")

    def step(self) -> None:
        self._tell("on_step_begin")
        self.model(torch.ones(1, 2)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        self._tell("on_step_end")

    def end(self) -> None:
        self._tell("on_train_end")

    def _tell(self, event: str) -> None:
        getattr(self.callback, event)(self._args, self.state, None, **self.parts)
