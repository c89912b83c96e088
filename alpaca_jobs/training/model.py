"""The model: tiny-llama made from scratch or any decoder-only model of transformers, and its sharding by FSDP2.

Parameters are float32 in memory whatever `train.dtype` says; FSDP casts them for the forward and backward pass and
reduces gradients in float32.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import nn

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.hub import TINY_LLAMA, foreign_model_errors, resolve_model
from alpaca_jobs.training.tokenizer import RowTokenizer

_TINY_HIDDEN, _TINY_LAYERS, _TINY_HEADS, _TINY_FEED_FORWARD = 128, 4, 4, 352


def build_model(
    train: TrainSpec, tokenizer: RowTokenizer, *, device: torch.device, with_weights: bool = True
) -> nn.Module:  # fmt: skip
    """Make or load the base model, float32, on a device, in training mode.

    `with_weights=False` leaves a base model's weights unread, for a caller that fills them in from a checkpoint.

    Random weights depend on `train.seed` alone, so all ranks of any world size start from the same ones. A vocabulary
    larger than the model's is given new rows, each the mean of the old ones, as in Stanford Alpaca.

    Raises:
        ModelError: no such model, one that cannot be loaded, or one trained for fewer tokens than `train.max_length`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(train.seed)
        if train.model == TINY_LLAMA:
            model = _tiny_llama(train, tokenizer)
        else:
            model = _pretrained(train, tokenizer, device=device, with_weights=with_weights)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    moved: nn.Module = model.to(device).train()
    return moved


def shard_model(model: nn.Module, train: TrainSpec, *, device: torch.device) -> nn.Module:
    """Shard every decoder layer and the rest over the default process group, in place; needs the group initialised.

    One rank goes the same way: its numbers then come from the same code as on many.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy()
    if train.dtype == "bfloat16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # FSDP wants inner modules first
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


def preload(train: TrainSpec) -> None:
    """Import what building and sharding this job's model will need: seconds that can overlap with reading rows."""
    modules = ["torch.distributed.fsdp", "transformers.models.llama.modeling_llama"]
    if train.model != TINY_LLAMA:
        modules.append("transformers.models.auto.modeling_auto")
    for module in modules:
        importlib.import_module(module)


def matrix_parameters(model: Any) -> int:
    """Parameters that take part in matrix products: all but an input embedding that is not the output's as well."""
    total = sum(param.numel() for param in model.parameters())
    given, out = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = out is not None and out.weight is given.weight
    return int(total if is_tied else total - given.weight.numel())


def accepts(model: nn.Module, argument: str) -> bool:
    """Whether the model's forward pass names this argument."""
    return argument in inspect.signature(model.forward).parameters


def _tiny_llama(train: TrainSpec, tokenizer: RowTokenizer) -> Any:
    # From the module itself: `from transformers import ...` walks the whole library.
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=_TINY_HIDDEN,
        intermediate_size=_TINY_FEED_FORWARD,
        num_hidden_layers=_TINY_LAYERS,
        num_attention_heads=_TINY_HEADS,
        num_key_value_heads=_TINY_HEADS,
        max_position_embeddings=max(train.max_length, 512),
        tie_word_embeddings=True,
        # 1 / sqrt(width). The library's 0.02 suits models ten times as wide: with it the demo's last epoch ends at 4.2
        # nats instead of 1.2 (160 rows, 60 steps, unigram entropy 5.4; 2026-11-21).
        initializer_range=_TINY_HIDDEN**-0.5,
        bos_token_id=None,  # its tokenizer puts nothing before a text
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return LlamaForCausalLM(config)


def _pretrained(train: TrainSpec, tokenizer: RowTokenizer, *, device: torch.device, with_weights: bool) -> Any:
    folder = resolve_model(train.model)
    with foreign_model_errors(train.model, "model"):
        from transformers import AutoConfig, AutoModelForCausalLM

        if with_weights:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        else:
            with device:  # random numbers for billions of parameters take a minute on a CPU
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    context = getattr(model.config, "max_position_embeddings", None)
    if isinstance(context, int) and train.max_length > context:
        raise ModelError(
            f"train.max_length is {train.max_length}, but {train.model} was trained for {context} tokens. Set "
            f"train.max_length to {context} or less, or take a base model with a longer context."
        )
    _fit_embeddings(model, tokenizer.vocab_size)
    model.config.pad_token_id = tokenizer.pad_id
    return model


def _fit_embeddings(model: Any, vocab_size: int) -> None:
    """Grow both embeddings to `vocab_size` rows; a model that has more rows than the tokenizer has ids keeps them."""
    old = model.get_input_embeddings().weight.shape[0]
    if vocab_size <= old:
        return
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        if embedding is not None:
            with torch.no_grad():
                embedding.weight[old:] = embedding.weight[:old].mean(dim=0, keepdim=True)
