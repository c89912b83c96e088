"""JobSpec: everything a job is, in one frozen value; unknown keys are refused and every default stands once.

Its parts live in spec_data.py, spec_train.py and spec_compute.py and are used under this module's name. spec_io.py
reads and writes it as YAML. A value that is built in a later version is not in its Literal yet, so that the error
lists what this version can do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from alpaca_jobs.spec_base import Positive, SecretName, SpecPart, one_or_more, refuse, want, want_hidden
from alpaca_jobs.spec_compute import LOCAL_REGIONS, ComputeSpec, GpuRequest, SpotSpec
from alpaca_jobs.spec_data import DataSpec, TeacherSpec
from alpaca_jobs.spec_train import CheckpointSpec, TrainSpec
from checkpoints.store_open import SCHEMES

__all__ = [
    "LOCAL_REGIONS",
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


class LimitsSpec(SpecPart):
    """Lines that are never crossed; null means no such line."""

    max_usd: Positive | None = None
    """Most dollars for machines and teacher together."""
    teacher_max_usd: Positive | None = None
    """Most dollars for the teacher alone."""
    deadline_h: Positive | None = None
    """Hours after launch at which the run is stopped with its state committed."""
    max_stall_min: Positive | None = 30.0
    """Minutes without a training step (and 3 times the longest pause so far) after which a machine that seems alive is
    given up and the run goes on elsewhere; 4 times as long before the second step, while a checkpoint is stored, and in
    an evaluation."""


class ExportSpec(SpecPart):
    """Where the finished model goes."""

    to: Annotated[tuple[Literal["store"], ...], BeforeValidator(one_or_more)] = Field(default=("store",), min_length=1)
    """Destinations; store means the run's own folder."""
    which: Literal["best", "last"] | None = None
    """Which state: best has the lowest evaluation loss, last is where training ended; null: best where train.eval is
    given."""
    merge: bool = False
    """Method lora: fold the adapters into the base model and export it whole, beside the adapters."""


def _check_store(value: str) -> str:
    parts = urlsplit(value)
    if parts.username or parts.password:
        want_hidden(
            "the URI holds a user name or password. Take it out and put credentials where the cloud's own tools "
            "look for them",
        )
    scheme, separator, _ = value.partition("://")
    if separator and scheme not in SCHEMES:
        want(f"a store is wanted that we can write to: {', '.join(f'{one}://' for one in SCHEMES)}, a path, or auto")
    return value


def _check_secrets(value: Any) -> Any:
    value = one_or_more(value)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        want_hidden("a list of NAMES is wanted, such as [OPENAI_API_KEY, HF_TOKEN]. Values stay in your environment")
    return value


def _check_server(teacher: TeacherSpec, compute: ComputeSpec) -> None:
    """Refuse a teacher of the run's own where no machine could serve it."""
    has_machine = not compute.is_local and not compute.is_own
    if has_machine and teacher.server.gpus is None:
        refuse(
            "data.teacher.server",
            f"names no GPUs, but {teacher.serve} needs a machine that serves it. Add server: {{gpus: L4:1}}, as many "
            "as the model takes",
        )
    if has_machine and compute.rows_apart is False:
        refuse(
            "compute.rows_apart",
            f"is false, but {teacher.serve} is served on a machine of its own, where the rows are written. Remove it",
        )
    if compute.is_own and teacher.server.gpus is not None:
        refuse(
            "data.teacher.server.gpus",
            f"is {teacher.server.gpus}, but on {compute.infra[0]} the rows are written on the machine that trains, "
            "with the GPUs it has. Remove it",
        )
    if not has_machine and compute.num_nodes > 1:
        refuse(
            "compute.num_nodes",
            f"is {compute.num_nodes}, but {teacher.serve} is served on one machine, for the requests of that machine. "
            "Set num_nodes: 1, or serve it elsewhere and name its base_url",
        )


class JobSpec(SpecPart):
    """A whole job: rows, model, machines, limits. Paths are relative to the job file, `store` to where you stand."""

    name: str = Field(pattern=NAME_PATTERN)
    """Small letters, digits and dashes, at most 40; runs are called NAME-xxxxx."""
    store: Annotated[str, AfterValidator(_check_store)] = Field(default="auto", min_length=1)
    """Where all state lives: file://, s3://, gs://, az://, or auto (on local: the folder ./runs)."""
    limits: LimitsSpec = LimitsSpec()
    """Dollars and hours that are never exceeded."""
    data: DataSpec
    """Rows to train on: from a file, or written by a teacher."""
    train: TrainSpec
    """Which model is trained, and how."""
    compute: ComputeSpec
    """What it runs on: workers or gpus, infra, regions, spot."""
    checkpoints: CheckpointSpec = CheckpointSpec()
    """How often state is saved, and what is kept."""
    export: ExportSpec = ExportSpec()
    """What is done with the finished model."""
    secrets: Annotated[tuple[SecretName, ...], BeforeValidator(_check_secrets)] = ()
    """NAMES of environment variables handed to the nodes; their values are in no file of ours."""

    @property
    def exports_best(self) -> bool:
        """Whether the state with the lowest evaluation loss is exported, and not the last."""
        return (self.export.which or "best") == "best" and self.train.eval is not None

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages in order of time; generation is left out when the rows exist already."""
        return ("train", "export") if self.data.from_ is not None else ("generate", "train", "export")

    @model_validator(mode="after")
    def _fits_together(self) -> JobSpec:
        teacher = self.data.teacher
        if isinstance(teacher, TeacherSpec) and teacher.needs_key and teacher.api_key_env not in self.secrets:
            refuse(
                "data.teacher",
                f"is {teacher.model}, which needs a key from {teacher.api_key_env}, but secrets does not list it. "
                f"Add secrets: [{teacher.api_key_env}] (the name, not the key), or set api_key_env: null for a "
                "server that asks for none",
            )
        if isinstance(teacher, TeacherSpec) and self.limits.teacher_max_usd is not None and not teacher.is_priced:
            refuse(
                "limits.teacher_max_usd",
                f"is {self.limits.teacher_max_usd:g}, but what {teacher.model} costs is not known, so it cannot be "
                "kept. Set data.teacher.price_per_million_input_usd and _output_usd, or remove the limit",
            )
        if isinstance(teacher, TeacherSpec) and teacher.serve is not None:
            _check_server(teacher, self.compute)
        if self.train.method == "command" and self.compute.num_nodes > 1:
            refuse(
                "compute.num_nodes",
                f"is {self.compute.num_nodes}, but train.method is command, which runs on one machine. Set num_nodes: "
                "1, and ask for more GPUs in it",
            )
        if self.export.which == "best" and self.train.eval is None:
            refuse(
                "export.which",
                "is best, but nothing is measured that could say which state that is. Set train.eval, such as "
                "{fraction: 0.01}, or leave export.which out",
            )
        if self.train.recipe == "vicuna" and self.data.from_ is None:
            refuse(
                "train.recipe",
                "is vicuna, which trains on conversations, but data generates single instructions. Set data.from to a "
                "file of conversations, or recipe: alpaca",
            )
        return self
