"""A job's estimate from start to end: what is known about it, where it may run, what that costs. Reads files only.

job -> Facts (work, teacher, assumptions) -> LaunchPlan -> JobEstimate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alpaca_jobs.errors import AlpacaError
from alpaca_jobs.generation.seeds import SeedTask, load_seed_tasks
from alpaca_jobs.known_models import KNOWN_MODELS, SizedModel
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.training.base_model import BaseModel
from cluster.errors import PlanError
from cluster.launch.planner import plan_launch, side_offers_for
from cluster.node.row_count import count_rows
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.price.account_limits import NOT_ASKED, AccountLimits, is_doubtful
from cluster.price.assumptions import Assumptions
from cluster.price.controller import is_consolidated
from cluster.price.estimate import DRAWS, CandidateEstimate, estimate_candidates
from cluster.price.estimate_factors import Factor, factors
from cluster.price.experience import PastRun, learn
from cluster.price.offers import Offer, PriceList
from cluster.price.side_machines import SideMachines, placement_of_offer, side_machines
from cluster.price.teacher_cost import TeacherEstimate, estimate_teacher
from cluster.price.workload import Workload, workload_of
from cluster.runs.run_ids import new_run_id


@dataclass(frozen=True)
class Counted:
    """What a user says about a job that cannot be read off it; None for what is not said."""

    num_rows: int | None = None
    tokens_per_row: float | None = None
    num_parameters: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is known about a job before it is planned.

    Attributes:
        work: None where it could not be counted, and then `unknown` says why.
        teacher: None for a job whose rows exist.
        read, base_bytes: the base model's size, and what each machine fetches of it, as its files tell them; None where
            they were not looked at, or do not tell it.
    """

    work: Workload | None
    unknown: str
    teacher: TeacherEstimate | None
    assumed: Assumptions
    read: SizedModel | None = None
    base_bytes: int | None = None


@dataclass(frozen=True)
class JobEstimate:
    """The whole job, in every place it may run.

    Attributes:
        candidates: in the plan's order.
        on_demand: the cheapest place on demand, for comparison; None where the plan has no spot place, or nobody sells.
        unpriced: parts of the cost without a known price, in words.
    """

    plan: LaunchPlan
    candidates: tuple[CandidateEstimate, ...]
    on_demand: CandidateEstimate | None
    factors: tuple[Factor, ...]
    unpriced: tuple[str, ...]
    draws: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "job": self.plan.job.name,
            "candidates": [one.to_json() for one in self.candidates],
            "on_demand": None if self.on_demand is None else self.on_demand.to_json(),
            "factors": [one.to_json() for one in self.factors],
            "unpriced": list(self.unpriced),
            "notes": list(self.plan.notes),
            "draws": self.draws,
            "seed": self.seed,
        }


def gather_facts(
    job: JobSpec, *, past: Sequence[PastRun] = (), counted: Counted | None = None, base: BaseModel | None = None
) -> Facts:
    """Count a job's work, as far as the job, its files, its base model's and the user say what it is."""
    given = counted or Counted()
    read = None if base is None or given.num_parameters is not None else size_told(base)
    base_bytes = None if base is None else base.fetched_bytes
    assumed = learn(job, past, read=read)
    teacher = estimate_teacher(job.data, assumed.teacher, _seeds(job)) if "generate" in job.stages else None
    try:
        return Facts(_work(job, given, teacher, read, base_bytes), "", teacher, assumed, read, base_bytes)
    except PlanError as exc:
        return Facts(None, str(exc), teacher, assumed, read, base_bytes)


def size_told(base: BaseModel) -> SizedModel | None:
    """What a base model's files say of its size, unless that is a guess and the size is known by its name."""
    found = base.size
    return None if found is None or (found.guess and base.name in KNOWN_MODELS) else found


def plan_with(job: JobSpec, facts: Facts, offers: PriceList, limits: AccountLimits = NOT_ASKED) -> LaunchPlan:
    """Plan a job under a new run id, by what is known about it.

    Args:
        offers: `offers_for(job)`.
        limits: what the account said it may have.

    Raises:
        PlanError: no offer fits.
    """
    side_offers = side_offers_for(job, offers)
    return plan_launch(
        job, run_id=new_run_id(job.name), offers=offers, side_offers=side_offers, limits=limits,
        work=facts.work, assumed=facts.assumed, read=facts.read, base_bytes=facts.base_bytes,
    )  # fmt: skip


def estimate_plan(
    plan: LaunchPlan,
    facts: Facts,
    offers: PriceList,
    *,
    limits: AccountLimits = NOT_ASKED,
    draws: int = DRAWS,
    seed: int = 0,
) -> JobEstimate:
    """Estimate a plan.

    SkyPilot's controller costs something where its settings here give it a machine of its own.

    Args:
        offers, limits: what it was planned from.

    Raises:
        PlanError: something that the estimate needs is not known; says what.
    """
    if facts.work is None:
        raise PlanError(facts.unknown)
    in_server = is_consolidated()
    side = _side(plan, offers, limits, in_server=in_server)
    other = _on_demand(plan, offers, limits)

    def estimate(places: tuple[Placement, ...]) -> tuple[CandidateEstimate, ...]:
        assert facts.work is not None
        return estimate_candidates(
            replace(plan, candidates=places), facts.work, facts.assumed,
            teacher=facts.teacher, side=side, draws=draws, seed=seed,
        )  # fmt: skip

    return JobEstimate(
        plan=plan,
        candidates=estimate(plan.candidates),
        on_demand=None if other is None else estimate((other,))[0],
        factors=factors(plan, facts.work, facts.assumed, teacher=facts.teacher, side=side),
        unpriced=_unpriced(plan, facts, side, in_server=in_server),
        draws=draws,
        seed=seed,
    )


def _seeds(job: JobSpec) -> tuple[SeedTask, ...]:
    """The seed tasks that self-instruct's prompts are sized by; none where they are not a file here that can be read.

    Whether they are right is not judged here: `launch` does that.
    """
    if job.data.recipe != "self-instruct" or not Path(job.data.seed_tasks).is_file():
        return ()
    try:
        return load_seed_tasks(job.data.seed_tasks)
    except AlpacaError:
        return ()


def _work(
    job: JobSpec, given: Counted, teacher: TeacherEstimate | None, read: SizedModel | None, base_bytes: int | None
) -> Workload:
    num_rows, tokens, source = given.num_rows, given.tokens_per_row, "given"
    if num_rows is None and teacher is not None:
        num_rows = teacher.rows
    if job.data.from_ is not None and (num_rows is None or tokens is None):
        found = count_rows(job.data.from_, recipe=job.train.recipe)
        if found is None and num_rows is None and not (Path(job.data.from_).exists() or "://" in job.data.from_):
            raise PlanError(
                f"data.from is {job.data.from_}, but no such file is on this machine, so its rows cannot be counted. "
                "Check the path, or say how many there will be: estimate --rows 52000 --row-tokens 128"
            )
        if found is not None:
            num_rows = found.num_rows if num_rows is None else num_rows
            tokens, source = (found.tokens_per_row, found.source) if tokens is None else (tokens, source)
    return workload_of(
        job, num_rows=num_rows, tokens_per_row=tokens, num_parameters=given.num_parameters, source=source,
        read=read, base_bytes=base_bytes,
    )  # fmt: skip


def _side(plan: LaunchPlan, offers: PriceList, limits: AccountLimits, *, in_server: bool) -> SideMachines:
    side = side_machines(plan.job, limits.within(side_offers_for(plan.job, offers), num_nodes=1), limits)
    return replace(side, controller=None) if in_server else side


def _on_demand(plan: LaunchPlan, offers: PriceList, limits: AccountLimits) -> Placement | None:
    """The cheapest place on demand with the plan's GPUs; None where the plan holds nothing else, or one anyway."""
    first = plan.candidates[0]
    if plan.is_local or first.pricing is not Pricing.SPOT:
        return None
    trusted = limits.trusted(plan.job.compute.regions)
    priced = [one for one in limits.within(offers, num_nodes=plan.num_nodes) if _is_alternative(one, plan)]
    best = min(
        priced,
        key=lambda one: (is_doubtful(one, trusted), one.price_per_hour_usd or 0.0, one.infra, one.region),
        default=None,
    )
    return None if best is None else placement_of_offer(best, num_nodes=plan.num_nodes)


def _is_alternative(offer: Offer, plan: LaunchPlan) -> bool:
    first, regions = plan.candidates[0], plan.job.compute.regions
    return (
        offer.pricing is Pricing.ON_DEMAND
        and offer.price_per_hour_usd is not None
        and (offer.gpus == first.gpus if first.gpus else offer.instance_type == first.instance_type)
        and (regions is None or offer.region in regions)
    )


def _unpriced(plan: LaunchPlan, facts: Facts, side: SideMachines, *, in_server: bool) -> tuple[str, ...]:
    missing = []
    if facts.teacher is not None and facts.teacher.cost_usd is None:
        missing.append(
            "The teacher's price is not known: set price_per_million_input_usd and price_per_million_output_usd in "
            "data.teacher. The cost shown is without it."
        )
    if not plan.is_local and side.controller is None and not in_server:
        clouds = ", ".join(plan.job.compute.infra)
        missing.append(f"The controller's machine is not priced: the price lists of {clouds} have none like it.")
    if facts.teacher is not None and plan.job.compute.gpus is not None and side.generation is None:
        missing.append("No machine without GPUs is in the price lists: the rows are priced on the training machines.")
    return tuple(missing)
