"""DeepSpeed's ZeRO 2 (gradients and optimizer in shards) and 3 (parameters as well), optionally in host memory.

State goes through checkpoints/torch_zero.py as named tensors, so a ZeRO run is continued by FSDP2 and the other way
round, on any number of ranks. DeepSpeed clips by itself, by the formula that the loop uses. In bfloat16 ZeRO begins
from weights rounded to bfloat16, where FSDP2 keeps float32 ones; a base model that is stored in bfloat16 loses nothing.

ZeRO 3 takes parameters one by one: each is read, sent from rank 0, cut up and dropped before the next one has memory.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.base_weights import Fill
from alpaca_jobs.training.engines.protocol import trained_parameters, without_training
from alpaca_jobs.training.optimizer import split_by_decay
from checkpoints.torch_zero import apply_zero_state, zero_state


class DeepSpeedZero:
    """The protocol's docstrings (protocol.py) hold."""

    def __init__(
        self, model: Any, train: TrainSpec, *, stage: int, device: torch.device, fill: Fill | None = None
    ) -> None:
        """Hand the model to DeepSpeed, which changes it in place; stage 3 fills it if it has no memory yet."""
        self._adapters_only = train.method == "lora"
        self._trained = set(trained_parameters(model))
        groups = split_by_decay(trained_parameters(model))  # while parameters have their shapes
        deepspeed = _import_deepspeed(device)
        config = zero_config(train, stage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what DeepSpeed warns about its own calls is nobody's to fix here
            if stage == 3:
                deepspeed.zero.Init(module=_OneByOne(model, device, fill), config_dict_or_path=config)
            self._buffers = _float_buffers(model)
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=_adamw(model, train, groups), config=config, dist_init_required=False
            )
        for owner, name, value in self._buffers:  # made bfloat16 with the rest: positions lose digits that matter
            owner._buffers[name] = value.to(device)
        self._zero = self._engine.optimizer
        self._stage = stage
        self.model = _Called(self._engine, model)
        self.mask_dtype = getattr(torch, train.dtype)
        # DeepSpeed's step is not torch's, and what else changes its flat partitions it does not say.
        self.optimizers: Sequence[torch.optim.Optimizer] = ()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """As the protocol says."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def squared_norm(self) -> float:
        """As the protocol says; DeepSpeed knows the whole norm."""
        if self._stage == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norm = combine_grad_norm_groups(self._zero._get_norm_groups())
        else:
            norm = self._zero.scaled_global_norm()
        value = float(norm)
        return (value**2 if value >= 0 else float("inf")) / dist.get_world_size()  # -1 stands for not finite

    def step(self, *, learning_rate: float, scale: float) -> None:
        """As the protocol says; `scale` is DeepSpeed's own business (`gradient_clipping`)."""
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    def evaluating(self) -> AbstractContextManager[None]:
        """As the protocol says."""
        return without_training(self._engine)

    def state(self) -> dict[str, Any]:
        """As the protocol says. DeepSpeed's own counters stay out: the loop has them."""
        found = zero_state(self._engine)
        model = found["model"]
        if self._adapters_only:
            model = {name: tensor for name, tensor in model.items() if name in self._trained}
        return {"model": model, "optimizer": found["optimizer"]}

    def after_load(self, state: dict[str, Any]) -> None:
        """As the protocol says; collective."""
        apply_zero_state(self._engine, state)

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model."""
        self._engine.destroy()


class _OneByOne(nn.Module):
    """A model as `deepspeed.zero.Init` takes it. That walks over its parameters, and each is cut up and freed before it
    asks for the next: so the next need not have been read before.
    """

    def __init__(self, model: nn.Module, device: torch.device, fill: Fill | None) -> None:
        super().__init__()
        self._whole = (model, device, fill)  # in a tuple, or torch would walk over the model's parameters by itself

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As torch has it, lazily. Rank 0 alone needs values: Init sends each parameter to the other ranks."""
        model, device, fill = self._whole
        if fill is not None:
            yield from fill.one_by_one(model, read=dist.get_rank() == 0)
            return
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        yield from model.parameters()


class _Called:
    """The model as the loop sees it: called through the engine, looked at as it is."""

    def __init__(self, engine: Any, model: Any) -> None:
        self._engine, self._model = engine, model
        self.forward = model.forward  # its signature says which arguments the model takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._engine(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def zero_config(train: TrainSpec, stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration. Source of its keys: deepspeed.ai/docs/config-json (read 2026-11)."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if train.cpu_offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        if stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,  # the loop makes the batches, of any size, and says when a step is whole
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own AdamW for CPUs is compiled on first use, for a minute
        "bf16": {"enabled": train.dtype == "bfloat16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _adamw(model: Any, train: TrainSpec, split: tuple[list[str], list[str]]) -> torch.optim.Optimizer:
    params = trained_parameters(model)
    decayed, others = split
    groups = [
        {"params": [params[name] for name in names], "weight_decay": decay}
        for names, decay in ((decayed, train.weight_decay), (others, 0.0))
        if names
    ]
    betas = (train.adam_beta1, train.adam_beta2)
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=train.adam_eps, fused=True)


def _float_buffers(model: Any) -> list[tuple[Any, str, Tensor]]:
    return [
        (owner, name, buffer.detach().clone())
        for owner in model.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.is_floating_point()
    ]


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this process's device; it reads who it is from the environment."""
    rank, world_size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, WORLD_SIZE=world_size, LOCAL_RANK=str(device.index or 0))
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.ops import __compatible_ops__

    # Sums through shared memory: half a minute of compiling on first use, for what gloo does as well.
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
