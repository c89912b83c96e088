"""JobSpec: everything a job is, in one frozen value; unknown keys are refused and every default stands here once.

spec_io.py reads and writes it as YAML. A value that is built in a later version is not in its Literal yet, so the
error lists what this version can do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from alpaca_jobs.known_models import KNOWN_MODELS
from alpaca_jobs.spec_base import (
    Fraction,
    NotNegative,
    Positive,
    PositiveWhole,
    SecretName,
    SpecPart,
    Whole,
    one_or_more,
    refuse,
)
from alpaca_jobs.spec_data import DataSpec, TeacherSpec

__all__ = [
    "CheckpointSpec",
    "ComputeSpec",
    "DataSpec",
    "ExportSpec",
    "GpuRequest",
    "JobSpec",
    "LimitsSpec",
    "SpotSpec",
    "TeacherSpec",
    "TrainSpec",
]

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
LOCAL_REGIONS = ("a", "b", "c")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_GPUS = re.compile(r"([A-Za-z][A-Za-z0-9-]*)(?::([1-9][0-9]*))?")
_RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "alpaca": {},
    # Multi-turn conversations are longer; FastChat trains on 2048 tokens with gradient checkpointing.
    "vicuna": {"max_length": 2048, "gradient_checkpointing": True},
}


class LimitsSpec(SpecPart):
    """Lines that are never crossed; null means no such line."""

    max_usd: Positive | None = None
    """Most dollars for machines and teacher together."""
    teacher_max_usd: Positive | None = None
    """Most dollars for the teacher alone."""
    deadline_h: Positive | None = None
    """Hours after launch at which the run is stopped with its state committed."""


class TrainSpec(SpecPart):
    """How the model is trained. Defaults are the Alpaca recipe; `recipe: vicuna` starts from 2048 tokens and gradient
    checkpointing instead. Any key may be set."""

    recipe: Literal["alpaca", "vicuna"] = "alpaca"
    """Format of prompts and labels: alpaca (instruction, input, output) or vicuna (conversations)."""
    model: str = Field(min_length=1)
    """Base model: a Hugging Face name, a folder, or tiny-llama (about 1 M parameters, made from scratch)."""
    method: Literal["full"] = "full"
    """What is trained: full means every parameter."""
    engine: Literal["auto", "fsdp"] = "auto"
    """What shards the model over ranks; auto picks fsdp."""
    exactness: Literal["rows", "bits"] = "rows"
    """rows: the same rows in the same batches after any recovery; bits: deterministic mode, the same bits as well."""
    global_batch_size: PositiveWhole = 128
    """Rows per optimizer step over all ranks, on any number of machines."""
    micro_batch_size: PositiveWhole = 4
    """Most rows in one forward pass of one rank; changes memory and speed, never the result's rows."""
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
    adam_beta1: Annotated[NotNegative, Field(lt=1)] = 0.9
    """AdamW's decay of the mean of gradients."""
    adam_beta2: Annotated[NotNegative, Field(lt=1)] = 0.999
    """AdamW's decay of the mean of squared gradients."""
    adam_eps: Positive = 1e-8
    """AdamW's denominator guard."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the forward and backward pass; parameters and optimizer stay float32."""
    seed: Whole = 42
    """Seed of everything random in training."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""

    @model_validator(mode="before")
    @classmethod
    def _recipe_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        recipe = values.get("recipe")
        return {**(_RECIPE_DEFAULTS.get(recipe, {}) if isinstance(recipe, str) else {}), **values}

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSpec:
        if self.micro_batch_size > self.global_batch_size:
            refuse(
                "micro_batch_size",
                f"it is {self.micro_batch_size}, but global_batch_size, which it is a part of, "
                f"is {self.global_batch_size}. Set it to {self.global_batch_size} or less",
            )
        known = KNOWN_MODELS.get(self.model)
        if known and known.context_length and self.max_length > known.context_length:
            refuse(
                "max_length",
                f"it is {self.max_length}, but {self.model} was trained for {known.context_length} "
                f"tokens. Set it to {known.context_length} or less, or take a model with a longer context",
            )
        return self


class SpotSpec(SpecPart):
    """Spot machines, with a say on when on-demand ones may be used."""

    on_demand: Literal["never", "last-resort"] = "never"
    """never: spot only; last-resort: on-demand machines are tried after every spot candidate."""


@dataclass(frozen=True)
class GpuRequest:
    """GPUs per node: the catalog's name and how many, for example ("A100-80GB", 8)."""

    name: str
    count: int


def _check_gpus(value: Any) -> Any:
    """Accept "auto" and "NAME:COUNT"; show the right spelling for the ways people write it otherwise."""
    if value is None or (isinstance(value, str) and (value == "auto" or _GPUS.fullmatch(value))):
        return value
    hint = "A100-80GB:8"
    if isinstance(value, str) and (swapped := re.fullmatch(r"(\d+)\s*[xX*]\s*([A-Za-z][A-Za-z0-9-]*)", value)):
        hint = f"{swapped[2]}:{swapped[1]}"
    elif isinstance(value, dict) and len(value) == 1:
        hint = ":".join(str(part) for item in value.items() for part in item)
    refuse("", f"NAME:COUNT is wanted (GPUs per node), such as {hint}, or auto, or null for a job without GPUs")


def _check_region(value: str) -> str:
    if not _REGION.fullmatch(value):
        refuse("", "the cloud's own spelling of a region is wanted, such as us-east-1 (on local: a, b, c)")
    return value


Region = Annotated[str, AfterValidator(_check_region)]


class ComputeSpec(SpecPart):
    """Which machines the job may use."""

    gpus: Annotated[str | None, BeforeValidator(_check_gpus)] = None
    """GPUs per node: NAME:COUNT, auto (picked from the model's size), or null for none."""
    num_nodes: PositiveWhole = 1
    """Machines that work together."""
    workers: PositiveWhole | None = None
    """Training ranks per node of a job without GPUs; with GPUs it is one rank per GPU."""
    threads_per_worker: PositiveWhole = 1
    """CPU threads of each rank; kept fixed because sums in another order have other bits."""
    infra: Annotated[
        tuple[Literal["local", "aws", "gcp", "azure", "lambda", "runpod", "nebius"], ...],
        BeforeValidator(one_or_more),
    ] = Field(default=("local",), min_length=1)
    """Where to look for machines: local (this machine), or clouds."""
    regions: Annotated[tuple[Region, ...], BeforeValidator(one_or_more), Field(min_length=1)] | None = None
    """Only these regions, in the cloud's own spelling; null means all (on local: a, b, c)."""
    spot: bool | SpotSpec = True
    """true: spot machines only; false: on demand only; or {on_demand: last-resort}. Without meaning on local."""
    recover: Literal["next-region", "cheapest"] = "next-region"
    """Where a lost run goes: next-region never tries the lost region first; cheapest tries the lowest price first."""
    max_wait_s: NotNegative = 21_600.0
    """Seconds to wait for capacity anywhere before the run is given up (it can be resumed)."""
    max_crashes: PositiveWhole = 3
    """Crashes at the same step before the run is given up."""

    @property
    def gpu_request(self) -> GpuRequest | None:
        """GPUs per node as name and count; None for "auto" and for a job without GPUs."""
        match = _GPUS.fullmatch(self.gpus) if self.gpus not in (None, "auto") else None
        return GpuRequest(match[1], int(match[2] or 1)) if match else None

    @property
    def is_local(self) -> bool:
        """Whether the job runs on this machine."""
        return self.infra == ("local",)

    @model_validator(mode="after")
    def _fits_together(self) -> ComputeSpec:
        if "local" in self.infra and len(self.infra) > 1:
            refuse("infra", f"it is [{', '.join(self.infra)}], but local stands alone. Name only local, or only clouds")
        if self.gpus is not None and self.is_local:
            refuse(
                "gpus",
                f"it asks for {self.gpus}, but infra is local, which has no GPUs to hand out, and a job that "
                "asks for GPUs never silently runs without. Set infra: [aws, gcp], or gpus: null and workers: 2",
            )
        if self.gpus is not None and self.workers is not None:
            refuse(
                "workers",
                f"it is {self.workers}, but gpus is {self.gpus}, and a GPU job runs one rank per GPU. Remove workers",
            )
        if self.gpus is None and self.workers is None:
            refuse(
                "workers",
                "it is not set. A job without GPUs has to say how many training ranks run per node: "
                "set workers: 2, or ask for GPUs with gpus: A100-80GB:8",
            )
        return self


def _check_interval(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    refuse("", "a whole number of steps, at least 1, or auto is wanted")


class CheckpointSpec(SpecPart):
    """How often state is saved and what is kept."""

    interval_steps: Annotated[PositiveWhole | Literal["auto"], BeforeValidator(_check_interval)] = "auto"
    """Optimizer steps between saves; auto derives it from the measured cost of a save and max_overhead."""
    max_overhead: Annotated[Fraction, Field(gt=0)] = 0.01
    """Largest fraction of training time that saving may cost when interval_steps is auto."""
    keep: Annotated[PositiveWhole, Field(ge=2)] = 2
    """Newest checkpoints that stay; at least 2, so that a damaged newest one leaves another."""
    keep_every: PositiveWhole | None = None
    """Also keep every checkpoint whose step is a multiple of this; null means none."""
    after_done: Literal["keep", "delete"] = "keep"
    """What happens to checkpoints once the model is exported."""


class ExportSpec(SpecPart):
    """Where the finished model goes."""

    to: Annotated[tuple[Literal["store"], ...], BeforeValidator(one_or_more)] = Field(default=("store",), min_length=1)
    """Destinations; store means the run's own folder."""


def _check_store(value: str) -> str:
    parts = urlsplit(value)
    if parts.username or parts.password:
        refuse(
            "",
            "the URI holds a user name or password. Take it out and put credentials where the cloud's own tools "
            "look for them",
        )
    return value


class JobSpec(SpecPart):
    """A whole job: rows, model, machines, limits. Paths in it are relative to the job file, `store` to where you stand."""

    name: str = Field(pattern=NAME_PATTERN)
    """Small letters, digits and dashes, at most 40; runs are called NAME-xxxxx."""
    store: Annotated[str, AfterValidator(_check_store)] = Field(default="auto", min_length=1)
    """Where all state lives: file://, s3://, gs://, az://, or auto (on local: the folder ./runs)."""
    limits: LimitsSpec = LimitsSpec()
    """Dollars and hours that are never exceeded."""
    data: DataSpec
    """Rows to train on."""
    train: TrainSpec
    """Model and training."""
    compute: ComputeSpec
    """Machines."""
    checkpoints: CheckpointSpec = CheckpointSpec()
    """Saving."""
    export: ExportSpec = ExportSpec()
    """The finished model."""
    secrets: Annotated[tuple[SecretName, ...], BeforeValidator(one_or_more)] = ()
    """NAMES of environment variables handed to the nodes; their values are in no file of ours."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages in order of time; generation is left out when the rows exist already."""
        return ("train", "export") if self.data.from_ is not None else ("generate", "train", "export")

    @property
    def teacher_key_name(self) -> str | None:
        """Name of the variable with the teacher's key if this job hands it over, else None."""
        teacher = self.data.teacher
        name = teacher.api_key_env if isinstance(teacher, TeacherSpec) else None
        return name if name in self.secrets else None

    @model_validator(mode="after")
    def _fits_together(self) -> JobSpec:
        teacher = self.data.teacher
        if isinstance(teacher, TeacherSpec) and teacher.api_key_env and not teacher.is_local:
            if teacher.api_key_env not in self.secrets:
                refuse(
                    "data.teacher",
                    f"the teacher {teacher.model} needs a key from {teacher.api_key_env}, but secrets does not "
                    f"list it. Add secrets: [{teacher.api_key_env}] (the name, not the key), or set api_key_env: null "
                    "for a server that asks for none",
                )
        if self.train.recipe == "vicuna" and self.data.from_ is None:
            refuse(
                "train.recipe",
                "it is vicuna, which trains on conversations, but data generates single "
                "instructions. Set data.from to a file of conversations, or recipe: alpaca",
            )
        return self
