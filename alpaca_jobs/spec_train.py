"""The training part of a job: the recipe's hyperparameters, and how often state is saved."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from alpaca_jobs.known_models import KNOWN_MODELS
from alpaca_jobs.spec_base import (
    BelowOne,
    Count,
    Fraction,
    NotNegative,
    Positive,
    PositiveFraction,
    PositiveWhole,
    SpecPart,
    TwoOrMore,
    Whole,
    one_or_more,
    refuse,
    want,
)
from alpaca_jobs.spec_recipe import EvalSpec, RopeScalingSpec, Templates, TokenizerSpec
from alpaca_jobs.spec_server import Argument

_RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "alpaca": {},
    # Multi-turn conversations are longer; FastChat trains on 2048 tokens with gradient checkpointing.
    "vicuna": {"max_length": 2048, "gradient_checkpointing": True},
    # Chinese-LLaMA-Alpaca's first stage: blocks of 512 tokens, 1024 a batch, 2e-4 falling.
    "pretrain": {"global_batch_size": 1024, "learning_rate": 2e-4, "epochs": 1.0},
}

_COMMAND_FOLDER = ("output", "data.jsonl", "job.json", "progress.jsonl")
"""What cluster/node/command_stage.py puts beside a command's own files."""


_METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "full": {},
    # Source: tloen/alpaca-lora, finetune.py (2023-04): learning rate 3e-4; batch 128, micro batch 4 and 3 epochs are
    # Alpaca's own.
    "lora": {"learning_rate": 3e-4, "lora": {}},
}


class LoraSpec(SpecPart):
    """Adapters of low rank (arXiv:2106.09685). Defaults are alpaca-lora's."""

    rank: PositiveWhole = 8
    """Rank of the matrices that are trained."""
    alpha: Positive = 16
    """Adapters count alpha / rank times."""
    dropout: BelowOne = 0.05
    """Fraction of an adapter's inputs that is dropped while training."""
    target_modules: Annotated[tuple[str, ...], BeforeValidator(one_or_more), Field(min_length=1)] = ("q_proj", "v_proj")
    """Names of the linear layers that get an adapter."""
    train_embeddings: bool | Literal["auto"] = "auto"
    """Train the input and output embeddings whole beside the adapters, and export them with these; auto: where
    train.tokenizer adds words, whose rows would otherwise stay the mean of the others."""


class TrainSpec(SpecPart):
    """How the model is trained. Defaults are the Alpaca recipe; `recipe: vicuna` starts from 2048 tokens and gradient
    checkpointing instead. Any key may be set."""

    recipe: Literal["alpaca", "vicuna", "pretrain"] = "alpaca"
    """Format of rows and labels: alpaca (instruction, input, output), vicuna (conversations) or pretrain (text)."""
    template: Literal["recipe", "chat"] = "recipe"
    """recipe: the recipe's own prompts, or `templates`; chat: the tokenizer's own template, loss on assistant turns."""
    templates: Templates = ()
    """Prompt templates in place of Alpaca's: JSON files like alpaca-lora's, or their keys. Several are mixed, one drawn
    for each row in each epoch."""
    tokenizer: TokenizerSpec | None = None
    """Words added to the base model's tokenizer; their embeddings begin as the mean of the others."""
    rope_scaling: RopeScalingSpec | None = None
    """Stretches the context beyond the base model's."""
    packing: Literal["blocks", "best_fit"] = "blocks"
    """Of recipe pretrain: blocks of max_length tokens cut from the running text, or documents packed whole."""
    model: str = Field(min_length=1)
    """Base model: a Hugging Face name, a folder, or tiny-llama (about 1 M parameters, made from scratch)."""
    revision: str | None = Field(default=None, pattern=r"^[\w][\w./-]*$")
    """Branch, tag or commit of a Hugging Face model. Launch replaces it by the commit: every attempt loads the same."""
    method: Literal["full", "lora", "command"] = "full"
    """What is trained: full means every parameter; lora: small adapters beside a frozen base model; command: what your
    own program trains (docs/COMMAND.md)."""
    lora: LoraSpec | None = None
    """The adapters of method lora; null means their defaults."""
    command: tuple[str, ...] | str | None = None
    """Your own training program: a list of words, or a text for the shell; for method: command."""
    command_per: Literal["machine", "rank"] = "machine"
    """machine: the command is started once, and starts its ranks itself; rank: once for each, as torchrun would."""
    files: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = ()
    """Files that the command needs, such as its script; copied to the run at launch, and beside it on every machine."""
    install: Annotated[tuple[Argument, ...], BeforeValidator(one_or_more)] = ()
    """What the command needs, such as trl==1.16.0. A cloud's machine installs it, and our base package beside it, into
    an environment apart from ours, whose programs the command finds first; on this machine install it yourself."""
    watch: str | None = None
    """Where in its working folder the command writes checkpoints, such as output; null: it uses the store itself."""
    hours: Positive | None = None
    """Hours that the command trains on the machines asked for, for estimates; nobody else can know."""
    engine: Literal["auto", "fsdp", "ddp", "single", "deepspeed-zero2", "deepspeed-zero3"] = "auto"
    """What spreads the model over ranks: auto is single on one rank and fsdp on several; ddp copies the whole model."""
    sharding: Literal["full", "hybrid"] = "full"
    """Engine fsdp: full shards over all ranks; hybrid inside each node, with a copy on every node."""
    cpu_offload: bool = False
    """Keep parameters (fsdp, deepspeed-zero3) and the optimizer in host memory: much less GPU memory, slower."""
    exactness: Literal["rows", "bits"] = "rows"
    """rows: the same rows in the same batches after any recovery; bits: deterministic mode, the same bits as well."""
    global_batch_size: PositiveWhole = 128
    """Rows per optimizer step over all ranks, on any number of machines."""
    micro_batch_size: PositiveWhole = 4
    """Most rows in one forward pass of one rank; changes memory and speed, never the result's rows."""
    loss_average: Literal["token", "micro_batch"] = "token"
    """token: the mean over all target tokens of a step; micro_batch: over each micro batch first, as in 2023."""
    cross_entropy: Literal["chunked", "plain"] = "chunked"
    """chunked: the logits of a batch are never in memory at once; plain: those of all target tokens are."""
    attention: Literal["auto", "mask"] = "auto"
    """auto: each row attends to itself alone (variable-length flash attention on GPUs) where the model allows it; mask:
    rows side by side are kept apart by a mask."""
    compile: bool = False
    """Compile the decoder layers with torch.compile: faster steps after minutes of compiling."""
    tf32: bool = True
    """On GPUs, multiply what stays in float32 in TensorFloat-32, as the published recipe does."""
    prefetch_steps: Count = 1
    """Steps whose batches are made ready while the current one computes; 0 makes them when they are needed."""
    learning_rate: Positive = 2e-5
    """Peak learning rate."""
    epochs: Positive = 3.0
    """Passes over the rows."""
    max_steps: PositiveWhole | None = None
    """Stop after this many optimizer steps even if epochs would go on; null means no such limit."""
    max_length: PositiveWhole = 512
    """Longest row in tokens; longer ones are cut."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay."""
    warmup_ratio: Fraction = 0.03
    """Fraction of all steps over which the learning rate rises."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm over all parameters."""
    adam_beta1: BelowOne = 0.9
    """AdamW's decay of the mean of gradients."""
    adam_beta2: BelowOne = 0.999
    """AdamW's decay of the mean of squared gradients."""
    adam_eps: Positive = 1e-8
    """AdamW's denominator guard."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the forward and backward pass; parameters and optimizer stay float32."""
    seed: Whole = 42
    """Seed of everything random in training."""
    eval: EvalSpec | None = None
    """Rows held out, how often their loss is measured, and when that ends training; null measures nothing."""
    track: Annotated[tuple[Literal["tensorboard", "wandb"], ...], BeforeValidator(one_or_more)] = ()
    """Trackers that are told of every step as well: tensorboard (files in the run's folder), wandb (its server with
    WANDB_API_KEY in secrets, else files)."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Recompute activations in the backward pass. true: all of them, a third more work; selective: keep the results of
    matrix products and attention, recompute the cheap rest."""

    @property
    def base(self) -> str:
        """The base model with its revision, as alpaca_jobs/training/hub.py takes it: owner/name@commit."""
        return self.model if self.revision is None else f"{self.model}@{self.revision}"

    @property
    def trains_embeddings(self) -> bool:
        """Whether method lora trains both embeddings whole."""
        if self.lora is None or self.method != "lora":
            return False
        wanted = self.lora.train_embeddings
        return self.tokenizer is not None if wanted == "auto" else wanted

    @model_validator(mode="before")
    @classmethod
    def _recipe_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        recipe, method = values.get("recipe"), values.get("method")
        values = {name: value for name, value in values.items() if not (name == "lora" and value is None)}
        by_recipe = _RECIPE_DEFAULTS.get(recipe, {}) if isinstance(recipe, str) else {}
        by_method = _METHOD_DEFAULTS.get(method, {}) if isinstance(method, str) else {}
        return {**by_recipe, **by_method, **values}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        if self.micro_batch_size > self.global_batch_size:
            refuse(
                "micro_batch_size",
                f"is {self.micro_batch_size}, but global_batch_size, which it is a part of, "
                f"is {self.global_batch_size}. Set it to {self.global_batch_size} or less",
            )
        if self.compile and self.exactness == "bits":
            refuse(
                "compile",
                "is true, but exactness is bits: what is compiled anew after a recovery may add up in another order. "
                "Leave compile out, or set exactness: rows",
            )
        self._check_command()
        if self.lora is not None and self.method != "lora":
            refuse("lora", f"is given, but method is {self.method}, without adapters. Set method: lora, or remove it")
        if self.lora is not None and self.lora.train_embeddings is False and self.tokenizer is not None:
            refuse(
                "lora",
                "has train_embeddings: false, but train.tokenizer adds words: each of them would stay the mean of the "
                "others. Leave train_embeddings out, or leave tokenizer out",
            )
        if self.sharding == "hybrid" and self.engine not in ("auto", "fsdp"):
            refuse("sharding", f"is hybrid, but engine is {self.engine}; only fsdp shards like that. Set engine: fsdp")
        if self.cpu_offload and self.engine in ("ddp", "single"):
            refuse(
                "cpu_offload",
                f"is true, but engine is {self.engine}, which keeps the whole model on the device. Set engine: fsdp",
            )
        self._check_recipe()
        known = KNOWN_MODELS.get(self.model)
        if known and known.context_length and self.max_length > known.context_length and self.rope_scaling is None:
            beyond = f"is {self.max_length}, but {self.model} was trained for {known.context_length}"
            if not known.has_rope:
                refuse(
                    "max_length",
                    f"{beyond} tokens. Set it to {known.context_length} or less, or take a model with a longer context",
                )
            refuse(
                "max_length",
                f"{beyond} and no rope_scaling is given. Set train.rope_scaling (linear, factor "
                f"{-(-self.max_length // known.context_length)}), or max_length to {known.context_length} or less",
            )
        return self

    def _check_recipe(self) -> None:
        if self.recipe == "pretrain" and self.template == "chat":
            refuse("template", "is chat, but recipe is pretrain, whose rows are text without turns. Leave template out")
        if self.templates and (self.recipe != "alpaca" or self.template == "chat"):
            refuse(
                "templates",
                "are given, but they are prompts for instruction and input: recipe alpaca with template recipe is "
                "wanted. Leave templates out",
            )
        if self.packing != "blocks" and self.recipe != "pretrain":
            refuse("packing", f"is {self.packing}, but only recipe pretrain packs documents. Leave packing out")
        if self.model == "tiny-llama" and (self.tokenizer or self.rope_scaling):
            key = "tokenizer" if self.tokenizer else "rope_scaling"
            refuse(key, "is given, but tiny-llama is made from scratch and needs none. Leave it out")

    def _check_command(self) -> None:
        if self.method == "command":
            if self.track:
                refuse("track", "is given, but method is command: your own program tracks itself. Leave track out")
            if self.eval is not None:
                refuse("eval", "is given, but method is command: your own program evaluates. Leave eval out")
            if not self.command:
                refuse("method", "is command, but there is no train.command. Write it: command: [python, train.py]")
            names = [PurePosixPath(name).name for name in self.files]
            if twice := [name for name in names if names.count(name) > 1 or name in _COMMAND_FOLDER]:
                refuse("files", f"has {twice[0]} twice in the folder that the command works in. Rename it")
            if self.watch is not None and (self.watch.startswith(("/", "~")) or ".." in self.watch.split("/")):
                refuse("watch", f"is {self.watch}, but a folder in the command's own is wanted, such as output")
            return
        for key in ("command", "command_per", "files", "install", "watch", "hours"):
            if getattr(self, key) != type(self).model_fields[key].default:
                refuse(key, f"is for a training program of your own, but method is {self.method}. Set method: command")


def _check_interval(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    want("a whole number of steps, at least 1, or auto is wanted")


class CheckpointSpec(SpecPart):
    """How often state is saved and what is kept."""

    interval_steps: Annotated[PositiveWhole | Literal["auto"], BeforeValidator(_check_interval)] = "auto"
    """Optimizer steps between saves; auto derives it from the measured cost of a save and max_overhead, and, away from
    the store's region, from what a save is billed.
    """
    max_overhead: PositiveFraction = 0.01
    """Largest fraction of training time that saving may cost when interval_steps is auto."""
    keep: TwoOrMore = 2
    """Newest checkpoints that stay; at least 2, so that a damaged newest one leaves another."""
    keep_every: PositiveWhole | None = None
    """Also keep every checkpoint whose step is a multiple of this; null means none."""
    when_busy: Literal["wait", "skip"] = "wait"
    """What a save does while the one before is still being stored: wait for that (training stands still), or skip."""
    after_done: Literal["keep", "delete"] = "keep"
    """What happens to checkpoints once the model is exported: keep leaves them until the run is removed; delete removes
    them all after every byte of the model was read again, and nothing can be trained on from there."""
