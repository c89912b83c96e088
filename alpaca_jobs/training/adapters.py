"""LoRA through peft: adapters put into a model in place, their first values, their export and their merge.

The model keeps its class and its parameters' names; each adapted layer gets `lora_A` (rank, in) and `lora_B`
(out, rank), and adds `alpha / rank * B A x` to its output. Only these are trained and saved: the base is named, by
model and digest. Source: LoRA, arXiv:2106.09685; exported adapters lie as peft has them (adapter_model.safetensors,
adapter_config.json).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec

_ADAPTER = "default"


def add_adapters(model: Any, train: TrainSpec) -> None:
    """Put the job's adapters into the model, in place, and freeze everything else.

    Values are first set by `reset_adapters`, once the parameters have memory.

    Raises:
        ModelError: the model has no layers of those names.
    """
    assert train.lora is not None
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=train.lora.rank,
        lora_alpha=train.lora.alpha,
        lora_dropout=train.lora.dropout,
        target_modules=list(train.lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # GPT-2 stores its layers transposed: known
        try:
            inject_adapter_in_model(config, model)
        except ValueError as exc:
            names = sorted(
                {name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, nn.Linear)}
            )
            raise ModelError(
                f"train.lora.target_modules is {list(train.lora.target_modules)}, but {train.model} cannot be adapted "
                f"there ({str(exc).splitlines()[0][:120]}). Its linear layers are called {', '.join(names)}."
            ) from exc


@torch.no_grad()
def reset_adapters(model: nn.Module, seed: int) -> None:
    """Give the adapters their first values: A uniform as peft does, B zero, so that training begins at the base model.

    Each value depends on (seed, name) alone: the same on every rank, however the model is spread.
    """
    from alpaca_jobs.training.optimizer import local_of

    for name, param in model.named_parameters():
        if ".lora_B." in name:
            local_of(param).zero_()
        elif ".lora_A." in name:
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            bound = math.sqrt(1.0 / param.shape[1])  # kaiming_uniform_(a=sqrt(5)) of torch.nn.init
            whole = torch.empty(param.shape).uniform_(-bound, bound, generator=generator)
            local_of(param).copy_(_my_part(whole, param))


def write_adapters(tensors: Mapping[str, Tensor], train: TrainSpec, folder: Path) -> None:
    """Write trained adapters as peft reads them.

    Args:
        tensors: by the model's names, `...q_proj.lora_A.default.weight`.
    """
    assert train.lora is not None
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    named = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in tensors.items()
    }
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(
        r=train.lora.rank, lora_alpha=train.lora.alpha, lora_dropout=train.lora.dropout,
        target_modules=sorted(train.lora.target_modules), bias="none", task_type="CAUSAL_LM",
        base_model_name_or_path=train.model, inference_mode=True,
    )  # fmt: skip
    config.save_pretrained(str(folder))


@torch.no_grad()
def merge_adapters(model: Any) -> None:
    """Fold the adapters into the layers they adapt and take them out of the model, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, layer.get_base_layer())
    model.requires_grad_(True)
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False


def _my_part(whole: Tensor, param: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(param, DTensor):
        return whole
    on_mesh = distribute_tensor(whole.to(param.device_mesh.device_type), param.device_mesh, param.placements)
    return on_mesh.to_local()
