"""The machine part of a job: how many, which, where, and how lost ones are replaced."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from alpaca_jobs.spec_base import NotNegative, PositiveWhole, SpecPart, one_or_more, refuse, want

LOCAL_REGIONS = ("a", "b", "c")
OWN_INFRA = ("k8s", "slurm", "ssh")
"""Machines of the user's own that SkyPilot reaches; nobody sells them, so they have no price and no spot."""
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{2,400}")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
GPUS_PATTERN = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,30})(?::([1-9][0-9]{0,3}))?")


def _said_regions(regions: tuple[str, ...] | None) -> str:
    return "regions does not say which" if regions is None else f"regions is [{', '.join(regions)}]"


class SpotSpec(SpecPart):
    """Spot machines, with a say on when on-demand ones may be used."""

    on_demand: Literal["never", "last-resort", "when-needed"] = "never"
    """never: spot only; last-resort: on demand after every spot candidate; when-needed: also before them, where another
    loss could cross the deadline or spot would cost more, and the budget lasts to the end."""


@dataclass(frozen=True)
class GpuRequest:
    """GPUs per node: the catalog's name and how many, for example ("A100-80GB", 8)."""

    name: str
    count: int


def _check_gpus(value: Any) -> Any:
    """Accept "auto" and "NAME:COUNT"; show the right spelling for the ways people write it otherwise."""
    if value is None or (isinstance(value, str) and (value == "auto" or GPUS_PATTERN.fullmatch(value))):
        return value
    hint = "A100-80GB:8"
    if isinstance(value, str) and (swapped := re.fullmatch(r"(\d+)\s*[xX*]\s*([A-Za-z][A-Za-z0-9-]*)", value)):
        hint = f"{swapped[2]}:{swapped[1]}"
    elif isinstance(value, dict) and len(value) == 1:
        hint = ":".join(str(part) for item in value.items() for part in item)
    want(f"NAME:COUNT is wanted (GPUs per node), such as {hint}, or auto, or null for a job without GPUs")


def _check_region(value: str) -> str:
    if not _REGION.fullmatch(value):
        want("the cloud's own spelling of a region is wanted, such as us-east-1 (on local: a, b, c)")
    return value


def _check_image(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        want("an image is wanted as SkyPilot names it, such as docker:me/train:1 or ami-0abc1234def567890")
    return value


Region = Annotated[str, AfterValidator(_check_region)]


class ComputeSpec(SpecPart):
    """Which machines the job may use."""

    gpus: Annotated[str | None, BeforeValidator(_check_gpus)] = None
    """GPUs per node: NAME:COUNT, auto (picked from the model's size), or null for none."""
    num_nodes: PositiveWhole = 1
    """Machines that work together; on local each is a group of processes of its own."""
    workers: PositiveWhole | None = None
    """Training ranks per node of a job without GPUs; with GPUs it is one rank per GPU."""
    threads_per_worker: PositiveWhole = 1
    """CPU threads of each rank; kept fixed because sums in another order have other bits."""
    infra: Annotated[
        tuple[Literal["local", "aws", "gcp", "azure", "lambda", "runpod", "nebius", "k8s", "slurm", "ssh"], ...],
        BeforeValidator(one_or_more),
    ] = Field(default=("local",), min_length=1)
    """Where to look for machines: local (this machine), clouds, or one of k8s, slurm and ssh (machines of your own)."""
    regions: Annotated[tuple[Region, ...], BeforeValidator(one_or_more), Field(min_length=1)] | None = None
    """Only these regions, in the cloud's own spelling; null: all (on local: a, b, c; on k8s, slurm, ssh: clusters)."""
    spot: Annotated[
        Annotated[bool, Tag("as-word")] | Annotated[SpotSpec, Tag("as-keys")],
        Discriminator(lambda value: "as-keys" if isinstance(value, dict | SpotSpec) else "as-word"),
    ] = True
    """true: spot machines only; false: on demand only; or {on_demand: last-resort}, below. Without meaning on local."""
    image: Annotated[str, AfterValidator(_check_image)] | None = None
    """What machines start from, as SkyPilot names it: docker:NAME:TAG, or one cloud's own image (ami-...); null:
    SkyPilot's. Where its ~/alpaca-jobs-env holds the libraries already, the set-up takes seconds."""
    rows_apart: bool | None = None
    """Whether rows are written on small machines of their own first; null: where the training machines have GPUs."""
    recover: Literal["next-region", "cheapest"] = "next-region"
    """Where a lost run goes: next-region never tries the lost region first; cheapest tries the lowest price first."""
    max_wait_s: NotNegative = 21_600.0
    """Seconds to wait for capacity anywhere before the run is given up (it can be resumed)."""
    max_crashes: PositiveWhole = 3
    """Crashes at the same step before the run is given up."""

    @property
    def gpu_request(self) -> GpuRequest | None:
        """GPUs per node as name and count; None for "auto" and for a job without GPUs."""
        match = GPUS_PATTERN.fullmatch(self.gpus) if self.gpus not in (None, "auto") else None
        return GpuRequest(match[1], int(match[2] or 1)) if match else None

    @property
    def is_own(self) -> bool:
        """Whether the job runs on machines of the user's own, through SkyPilot."""
        return self.infra[0] in OWN_INFRA

    @property
    def spot_policy(self) -> SpotSpec | None:
        """How spot machines are used; None means on demand only."""
        if isinstance(self.spot, SpotSpec):
            return self.spot
        return SpotSpec() if self.spot else None

    @property
    def is_local(self) -> bool:
        """Whether the job runs on this machine."""
        return self.infra == ("local",)

    @model_validator(mode="after")
    def _fits_together(self) -> ComputeSpec:
        if "local" in self.infra and len(self.infra) > 1:
            refuse("infra", f"is [{', '.join(self.infra)}], but local stands alone. Name only local, or only clouds")
        if len(self.infra) > 1 and (own := [name for name in self.infra if name in OWN_INFRA]):
            refuse(
                "infra",
                f"is [{', '.join(self.infra)}], but {own[0]} is machines of your own, which have no price to compare "
                f"with others'. Name only {own[0]}, or only clouds",
            )
        self._check_image_fits()
        if self.gpus == "auto" and self.is_own:
            refuse(
                "gpus",
                f"is auto, which compares prices, and {self.infra[0]} has none. Say which: gpus: A100-80GB:8",
            )
        if self.rows_apart and (self.is_local or self.is_own):
            refuse(
                "rows_apart",
                f"is true, but infra is {self.infra[0]}, which has no other machines to buy. Remove rows_apart",
            )
        if self.gpus is not None and self.is_local:
            refuse(
                "gpus",
                f"asks for {self.gpus}, but infra is local, which hands out none, and a job that "
                "asks for GPUs never silently runs without. Set infra: [aws, gcp], or gpus: null and workers: 2",
            )
        if self.gpus is not None and self.workers is not None:
            refuse(
                "workers",
                f"is {self.workers}, but gpus is {self.gpus}, and a GPU job runs one rank per GPU. Remove workers",
            )
        if self.gpus is None and self.workers is None:
            refuse(
                "workers",
                "is not set. A job without GPUs has to say how many training ranks run per node: "
                "set workers: 2, or ask for GPUs with gpus: A100-80GB:8",
            )
        return self

    def _check_image_fits(self) -> None:
        if self.image is None:
            return
        if self.is_local:
            refuse("image", f"is {self.image}, but infra is local, where nodes are processes. Remove image")
        if self.image.startswith("docker:"):
            return
        where = ", ".join(self.infra)
        if len(self.infra) > 1 or self.is_own:
            refuse(
                "image",
                f"is {self.image}, an image of one cloud, but infra is [{where}]. Name that cloud alone, or an image "
                "that all can run: docker:NAME:TAG",
            )
        if self.image.startswith("ami-") and (self.regions is None or len(self.regions) > 1):
            refuse(
                "image",
                f"is {self.image}, which is in one region of AWS, but {_said_regions(self.regions)}. Name that region "
                "alone, or an image that can be had in all: docker:NAME:TAG",
            )
