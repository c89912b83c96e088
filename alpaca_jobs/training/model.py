"""The model: tiny-llama made from scratch or any decoder-only model of transformers; engines/ spreads it."""

from __future__ import annotations

import importlib
import inspect
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from alpaca_jobs.errors import ModelError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.attention import flash_operators
from alpaca_jobs.training.base_weights import parameters_without_memory
from alpaca_jobs.training.hub import TINY_LLAMA, foreign_model_errors, resolve_model
from alpaca_jobs.training.known_faults import refuse_quantised
from alpaca_jobs.training.lean_imports import hidden, stand_in_for_compiler
from alpaca_jobs.training.rope import stretch_context
from alpaca_jobs.training.tokenizer import RowTokenizer

_TINY_HIDDEN, _TINY_LAYERS, _TINY_HEADS, _TINY_FEED_FORWARD = 128, 4, 4, 352


def build_model(train: TrainSpec, tokenizer: RowTokenizer, *, device: torch.device) -> nn.Module:
    """Make or load the whole base model, float32, on a device, in training mode.

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
            model = _pretrained(train, tokenizer)
    moved: nn.Module = _for_training(model, train).to(device)
    return moved


def build_without_memory(train: TrainSpec, tokenizer: RowTokenizer) -> nn.Module:
    """A pretrained model, float32, whose parameters have no memory yet, with rows for all of the tokenizer's ids.

    Raises:
        ModelError: as for `build_model`.
    """
    with foreign_model_errors(train.model, "model"), torch.random.fork_rng(devices=[]):
        from transformers import AutoModelForCausalLM

        config = _config(train)
        with parameters_without_memory():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            if tokenizer.vocab_size > model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(tokenizer.vocab_size, mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_id
    prepared: nn.Module = _for_training(model, train)
    return prepared


def build_trial(train: TrainSpec) -> nn.Module:
    """A small model of a pretrained one's architecture to try things out on: as few layers as show all of its kinds,
    random weights.

    Raises:
        ModelError: as for `build_model`.
    """
    with foreign_model_errors(train.model, "model"), torch.random.fork_rng(devices=[]):
        from transformers import AutoModelForCausalLM

        small = _config(train)
        kinds = list(getattr(small, "layer_types", None) or ())
        small.num_hidden_layers = min(small.num_hidden_layers, max([2, *(1 + kinds.index(kind) for kind in kinds)]))
        if len(getattr(small, "layer_types", None) or ()) > small.num_hidden_layers:  # some count them themselves
            small.layer_types = kinds[: small.num_hidden_layers]
        trial: nn.Module = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    return trial


def _config(train: TrainSpec) -> Any:
    """A pretrained model's configuration, its context as long as the job wants it."""
    folder = resolve_model(train.base)
    with foreign_model_errors(train.model, "model"):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder)
    refuse_quantised(getattr(config, "quantization_config", None), train.model)
    stretch_context(config, train)
    return config


def _for_training(model: Any, train: TrainSpec) -> Any:
    if train.gradient_checkpointing:
        how: dict[str, Any] = {"use_reentrant": False}
        if train.gradient_checkpointing == "selective":
            how["context_fn"] = keep_products
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    model.config.use_cache = False
    return model.train()


def keep_products() -> Any:
    """What selective checkpointing keeps: results of matrix products and attention, which cost the most to repeat.

    Source: torch.utils.checkpoint, create_selective_checkpoint_contexts.
    """
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    aten = torch.ops.aten
    return create_selective_checkpoint_contexts(  # type: ignore[no-untyped-call]
        [
            aten.mm.default, aten.addmm.default, aten.bmm.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            *flash_operators(),
        ]
    )  # fmt: skip


def preload(train: TrainSpec) -> None:
    """Import what building and sharding this job's model will need: seconds that can overlap with reading rows."""
    modules = ["torch.distributed.fsdp", "transformers.models.llama.modeling_llama"]
    if train.model != TINY_LLAMA:
        modules.append("transformers.models.auto.modeling_auto")
    with ExitStack() as lean:
        lean.enter_context(hidden("click"))  # httpx, which the hub is asked with, has a command line as well
        if not train.compile and not train.engine.startswith("deepspeed"):
            stand_in_for_compiler()
            if train.method == "full":
                lean.enter_context(hidden("accelerate"))  # adapters need it, a whole model does not
        for module in modules:
            importlib.import_module(module)


def matrix_parameters(model: Any) -> int:
    """Parameters that take part in matrix products: all but an input embedding that is not the output's as well.

    A frozen one counts two thirds: of the three products of a step (forward, and in the backward pass one for the input
    and one for the weight) it takes part in two.
    """
    given, out = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = out is not None and out.weight is given.weight
    params = [param for param in model.parameters() if is_tied or param is not given.weight]
    sizes = [(getattr(param, "ds_numel", param.numel()), param.requires_grad) for param in params]
    return int(sum(size if is_trained else size * 2 / 3 for size, is_trained in sizes))


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


def _pretrained(train: TrainSpec, tokenizer: RowTokenizer) -> Any:
    folder = resolve_model(train.base, weights=True)
    config = _config(train)
    with foreign_model_errors(train.model, "model"):
        from transformers import AutoModelForCausalLM

        model, told = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"{train.model} lacks {len(missing)} of the tensors that its config.json describes "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}), and transformers would fill them with "
            "random numbers. Copy or download the model again; or correct its config.json."
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
