"""LaunchPlan: what a launch will do, decided before anything starts. `--dry-run` prints the very plan `launch` runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from alpaca_jobs.errors import SpecError
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import job_to_dict, stored_job
from cluster.errors import PlanError

SECONDS_PER_HOUR = 3600.0


class Pricing(StrEnum):
    """How a machine is paid for."""

    ON_DEMAND = "on_demand"
    SPOT = "spot"


@dataclass(frozen=True)
class Placement:
    """One place the job may run: `num_nodes` machines of one kind in one zone.

    Attributes:
        infra: local, or a cloud's name (aws, gcp, ...).
        region, zone: the cloud's own spelling; on local the region is a, b, c and the zone None. A cloud that sells by
            region alone has no zone either.
        instance_type: the cloud's own name of the machine; "process" on local.
        price_per_hour_usd: for one node; 0.0 on local, None when nobody says.
        num_nodes: machines that work together.
        gpus: GPUs of one node as NAME:COUNT, or None.
        workers: training ranks of one node where that is not what the job says (a drill over world sizes), or None.
    """

    infra: str
    region: str
    zone: str | None
    instance_type: str
    pricing: Pricing
    price_per_hour_usd: float | None
    num_nodes: int
    gpus: str | None = None
    workers: int | None = None

    @property
    def name(self) -> str:
        """Where it is, as people write it: local/a, aws/us-east-1."""
        return f"{self.infra}/{self.region}"

    @property
    def job_price_per_hour_usd(self) -> float | None:
        """`price_per_hour_usd * num_nodes`, or None when the price is unknown."""
        return None if self.price_per_hour_usd is None else self.price_per_hour_usd * self.num_nodes

    def usd_for(self, seconds: float) -> float | None:
        """Dollars for these machines over some seconds; None while their price is unknown."""
        price = self.job_price_per_hour_usd
        return None if price is None else price * seconds / SECONDS_PER_HOUR

    def __str__(self) -> str:
        nodes = f"{self.num_nodes} x " if self.num_nodes > 1 else ""
        price = "price unknown" if self.price_per_hour_usd is None else f"{self.price_per_hour_usd:.2f} USD/h each"
        where = self.name if self.zone is None else f"{self.infra}/{self.zone}"
        return f"{nodes}{self.instance_type} ({self.pricing.value}) in {where}, {price}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, `pricing` by its value."""
        return {**asdict(self), "pricing": self.pricing.value}

    @classmethod
    def from_json(cls, value: Any) -> Placement:
        """Read what `to_json` wrote; raises PlanError for anything else."""
        if not isinstance(value, Mapping):
            raise PlanError(f"a placement is a mapping, not {value!r:.80}.")
        try:
            return cls(**{**value, "pricing": Pricing(value["pricing"])})
        except (KeyError, TypeError, ValueError) as exc:
            raise PlanError(f"not a placement of this version ({exc}): {dict(value)!r:.200}") from exc


@dataclass(frozen=True)
class PlanPart:
    """A part of a run: the stage after which its machines are given back (None: the run's last one), and its places."""

    until: str | None
    candidates: tuple[Placement, ...]

    @property
    def name(self) -> str:
        """What people call it: rows, or the run itself."""
        return "rows" if self.until == "generate" else "train"


@dataclass(frozen=True)
class LaunchPlan:
    """Everything a launch needs to know.

    Attributes:
        run_id: stays the same over all attempts.
        job: the job as it was checked.
        store_uri: root of the store; the run lives below <store_uri>/<run_id>/. "auto" on a cloud: made at launch.
        candidates: where it may run, best first; never empty.
        world_size: training ranks in the job = ranks per node x num_nodes.
        code_version: the code that made the plan and will run (cluster/code_version.py).
        notes: sentences a user should read with the plan (where prices come from, what was chosen for them).
        until: the stage after which the run is over; None for the job's last one.
        generation: where the rows are written, best first, on a cloud whose training machines are too dear to wait for
            a teacher; empty where the rows are written on `candidates` too.
        num_parameters, base_bytes: of the base model, and of what each machine fetches of it, as its files told them;
            None where they were not looked at.
    """

    run_id: str
    job: JobSpec
    store_uri: str
    candidates: tuple[Placement, ...]
    world_size: int
    code_version: str
    notes: tuple[str, ...] = ()
    until: str | None = None
    generation: tuple[Placement, ...] = ()
    num_parameters: int | None = None
    base_bytes: int | None = None

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine."""
        return self.candidates[0].infra == "local"

    @property
    def num_nodes(self) -> int:
        """Machines that work together; the same in every candidate."""
        return self.candidates[0].num_nodes

    @property
    def parts(self) -> tuple[PlanPart, ...]:
        """What runs one after the other, each on machines of its own; most runs have one part."""
        if not self.generation or "generate" not in self.job.stages:
            return (PlanPart(self.until, self.candidates),)
        rows = PlanPart("generate", self.generation)
        return (rows,) if self.until == "generate" else (rows, PlanPart(self.until, self.candidates))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` makes an equal plan."""
        return {
            "run_id": self.run_id,
            "job": job_to_dict(self.job),
            "store_uri": self.store_uri,
            "candidates": [place.to_json() for place in self.candidates],
            "world_size": self.world_size,
            "code_version": self.code_version,
            "notes": list(self.notes),
            "until": self.until,
            "generation": [place.to_json() for place in self.generation],
            "num_parameters": self.num_parameters,
            "base_bytes": self.base_bytes,
        }

    @classmethod
    def from_json(cls, value: Any) -> LaunchPlan:
        """Read what `to_json` wrote; raises PlanError, naming the field, for anything else."""
        try:
            return cls(
                run_id=value["run_id"],
                job=stored_job(value["job"], source="plan.json"),
                store_uri=value["store_uri"],
                candidates=tuple(Placement.from_json(place) for place in value["candidates"]),
                world_size=value["world_size"],
                code_version=value["code_version"],
                notes=tuple(value["notes"]),
                until=value.get("until"),
                generation=tuple(Placement.from_json(place) for place in value.get("generation", ())),
                num_parameters=value.get("num_parameters"),
                base_bytes=value.get("base_bytes"),
            )
        except (KeyError, TypeError) as exc:
            raise PlanError(
                f"plan.json is not a plan of this version: {exc}. Plan again with: alpaca-jobs launch"
            ) from exc
        except SpecError as exc:
            raise PlanError(f"The job in plan.json is not one of this version: {exc}") from exc
