"""LoRA through peft: adapters put into a model in place, their first values, their export and their merge.

The model keeps its class and its parameters' names; each adapted layer gets `lora_A` (rank, in) and `lora_B`
(out, rank), and adds `alpha / rank * B A x` to its output; an adapted embedding has them as `lora_embedding_A` and
`lora_embedding_B`. These are trained and saved, and where the job enlarges the
vocabulary both embeddings as well, whole: an adapter beside a frozen one would leave every new word the mean of the old
ones. The base is named, by model and digest. Source: LoRA, arXiv:2106.09685; exported adapters lie as peft has them
(adapter_model.safetensors, adapter_config.json with the embeddings as `modules_to_save`).
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
    """Put the job's adapters into the model, in place, and freeze everything else but embeddings that are trained.

    Values are first set by `reset_adapters`, once the parameters have memory.

    Raises:
        ModelError: the model has no layers of those names, or embeddings are to be both adapted and trained, or one
            that is the other as well is to be adapted.
    """
    assert train.lora is not None
    from peft import LoraConfig, inject_adapter_in_model

    embeddings = _embeddings(model) if train.trains_embeddings else {}
    if both := {name.rpartition(".")[2] for name in embeddings} & set(train.lora.target_modules):
        raise ModelError(
            f"train.lora.target_modules has {both.pop()}, an embedding of {train.model} that is trained whole, since "
            "the job adds words to it. Leave it out of target_modules."
        )
    _refuse_tied(model, train)
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
    for module in embeddings.values():
        module.weight.requires_grad_(True)


def _refuse_tied(model: Any, train: TrainSpec) -> None:
    """An adapter changes one use of a tied embedding; folded into the weight it would change both."""
    assert train.lora is not None
    given, out = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = {name.rpartition(".")[2] for name in _embeddings(model)} & set(train.lora.target_modules)
    if adapted and out is not None and given is not None and out.weight is given.weight:
        raise ModelError(
            f"train.lora.target_modules has {adapted.pop()}, but {train.model} uses one matrix for its input and its "
            "output embedding, and an adapter of one would change both once it is merged. Leave it out, or set "
            "lora.train_embeddings: true, which trains that matrix whole."
        )


def trained_embeddings(model: Any) -> dict[str, tuple[str, ...]]:
    """The embeddings of an adapted model that are trained whole: the parameter's name -> the names of all modules that
    have it, the output's as well where it is tied to the input's.
    """
    modules = _embeddings(model)
    return {
        name: tuple(there for there, module in modules.items() if module.weight is param)
        for name, param in model.named_parameters()
        if param.requires_grad and any(module.weight is param for module in modules.values())
    }


def _embeddings(model: Any) -> dict[str, Any]:
    """The input and the output embedding by their modules' names."""
    both = [one for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    return {name: module for name, module in model.named_modules() if any(module is one for one in both)}


@torch.no_grad()
def reset_adapters(model: nn.Module, seed: int) -> None:
    """Give the adapters their first values as peft does: A uniform and B zero, or for an embedding A zero and B normal,
    so that training begins at the base model.

    Each value depends on (seed, name) alone: the same on every rank, however the model is spread.
    """
    for name, param in model.named_parameters():
        reset_adapter(name, param, seed)


@torch.no_grad()
def reset_adapter(name: str, param: Tensor, seed: int) -> None:
    """`reset_adapters` for one parameter; anything but an adapter's is left as it is."""
    from alpaca_jobs.training.optimizer import local_of

    if ".lora_B." in name or ".lora_embedding_A." in name:
        local_of(param).zero_()
    elif ".lora_A." in name or ".lora_embedding_B." in name:
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        whole = torch.empty(param.shape)
        if ".lora_A." in name:
            bound = math.sqrt(1.0 / param.shape[1])  # kaiming_uniform_(a=sqrt(5)) of torch.nn.init
            whole.uniform_(-bound, bound, generator=generator)
        else:
            whole.normal_(generator=generator)
        local_of(param).copy_(_my_part(whole, param))


def write_adapters(
    tensors: Mapping[str, Tensor], train: TrainSpec, folder: Path, *, embeddings: Mapping[str, tuple[str, ...]]
) -> None:
    """Write trained adapters as peft reads them, with the base's name and revision.

    Args:
        tensors: by the model's names, `...q_proj.lora_A.default.weight`, `...embed_tokens.lora_embedding_A.default`.
        embeddings: of `trained_embeddings`. Of a tied one peft is told that it is, and looks for it under both names.
    """
    assert train.lora is not None
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    named = {}
    for name, tensor in tensors.items():
        without = name.removesuffix(f".{_ADAPTER}").replace(f".{_ADAPTER}.", ".")
        plain = [f"{module}.weight" for module in embeddings.get(name, ())] or [without]
        named.update({f"base_model.model.{one}": tensor.clone().contiguous() for one in plain})
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = LoraConfig(
        r=train.lora.rank, lora_alpha=train.lora.alpha, lora_dropout=train.lora.dropout,
        target_modules=sorted(train.lora.target_modules), bias="none", task_type="CAUSAL_LM",
        base_model_name_or_path=train.model, revision=train.revision, inference_mode=True,
        modules_to_save=sorted(modules[0].rpartition(".")[2] for modules in embeddings.values()) or None,
        ensure_weight_tying=any(len(modules) > 1 for modules in embeddings.values()),
    )  # fmt: skip
    config.save_pretrained(str(folder))


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by their modules' names."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: one for name, one in model.named_modules() if isinstance(one, BaseTunerLayer)}


@torch.no_grad()
def merge_adapters(model: Any) -> None:
    """Fold the adapters into the layers they adapt and take them out of the model, in place."""
    for name, layer in adapted_layers(model).items():
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
