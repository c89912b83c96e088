"""What a job's training will cost and how long it will take, before it runs. Pure; docs/ESTIMATE.md checks it.

    LaunchPlan + Workload + Assumptions -> CandidateEstimate for every place: hours and dollars as p10 / p50 / p90

The teacher's part is cluster/teacher_cost.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cluster.errors import PlanError
from cluster.hardware import peak_flops
from cluster.hazard import Hazard, spot_hazard
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.simulation import Course, Played, Quantiles, play, quantiles
from cluster.spending import SECONDS_PER_HOUR, compute_usd
from cluster.throughput import MFU_PRIOR, MFU_SPREAD, Throughput
from cluster.workload import Workload

WEIGHTS_BYTES_PER_PARAMETER = 2  # base weights as they are published
STATE_BYTES_PER_PARAMETER = 12  # a checkpoint: float32 parameter and AdamW's two moments, 81 GB for a 7B
_GB = 1e9
_HOURS_PER_MONTH = 730.0


@dataclass(frozen=True)
class Assumptions:
    """Every number that is neither in the job nor in a price list. All are priors: a measured one should replace it.

    Attributes:
        mfu, mfu_spread: cluster/throughput.py.
        hazard: preemptions of a spot machine; cluster/hazard.py.
        boot_s: from a machine's boot to everything installed on it.
        download_bytes_per_s: of one node, for base weights and state.
        away_s: from a loss to the next machine's boot: noticing it, and capacity.
        save_interval_s: work between two saves where the job leaves it to `auto`.
        egress_usd_per_gb: state read from another region. Source: AWS, between its regions in the US, 2024.
        storage_usd_per_gb_month: checkpoints kept. Source: S3 Standard, us-east-1, 2024.
        checkpoints_kept: at a time.
    """

    mfu: float = MFU_PRIOR
    mfu_spread: float = MFU_SPREAD
    hazard: Hazard = field(default_factory=spot_hazard)
    boot_s: float = 300.0
    download_bytes_per_s: float = 500e6
    away_s: float = 300.0
    save_interval_s: float = 600.0
    egress_usd_per_gb: float = 0.02
    storage_usd_per_gb_month: float = 0.023
    checkpoints_kept: int = 2


@dataclass(frozen=True)
class CandidateEstimate:
    """Training in one place.

    Attributes:
        hours: from the first machine's boot to the last step.
        cost_usd: machines held, state moved between regions, checkpoints kept; None when the price is unknown.
        preemptions: mean over the plays.
        course: what was played.
    """

    placement: Placement
    hours: Quantiles
    cost_usd: Quantiles | None
    preemptions: float
    course: Course


def estimate_candidates(
    plan: LaunchPlan, work: Workload, assumed: Assumptions | None = None, *, draws: int = 400, seed: int = 0
) -> tuple[CandidateEstimate, ...]:
    """Estimate training in every place of a plan, in the plan's order.

    Args:
        work: cluster/workload.py.
        draws, seed: of the simulation; the same seed gives the same numbers.

    Raises:
        PlanError: a GPU whose peak is not known.
    """
    priors = assumed or Assumptions()
    games: dict[Course, tuple[Played, ...]] = {}  # places that differ by price alone share the plays
    found = []
    for place in plan.candidates:
        course = course_of(place, plan, work, priors)
        if course not in games:
            games[course] = play(course, draws=draws, seed=seed)
        found.append(_estimate(place, course, games[course], work, priors))
    return tuple(found)


def course_of(place: Placement, plan: LaunchPlan, work: Workload, assumed: Assumptions) -> Course:
    """What training in one place is made of. Raises PlanError for a GPU whose peak is not known."""
    gpu = (place.gpus or "no GPU").partition(":")[0]
    peak = peak_flops(gpu, infra=place.infra, instance_type=place.instance_type)
    if peak is None:
        raise PlanError(
            f"The bfloat16 peak of {gpu} ({place.instance_type} in {place.name}) is not known, so training there "
            "cannot be priced. Take another GPU, or measure with a short run: train.max_steps: 20."
        )
    speed = Throughput(plan.world_size, peak, assumed.mfu)
    work_s = speed.seconds(num_parameters=work.num_parameters, tokens=work.tokens)
    byte_s = work.num_parameters / place.num_nodes / assumed.download_bytes_per_s  # one byte of every parameter
    interval = plan.job.checkpoints.interval_steps
    return Course(
        work_s=work_s,
        work_spread=assumed.mfu_spread,
        start_s=assumed.boot_s + WEIGHTS_BYTES_PER_PARAMETER * byte_s,
        restart_s=assumed.boot_s + STATE_BYTES_PER_PARAMETER * byte_s,
        away_s=assumed.away_s,
        save_interval_s=interval * work_s / work.steps if isinstance(interval, int) else assumed.save_interval_s,
        losses_per_hour=assumed.hazard.per_node_hour * place.num_nodes if place.pricing is Pricing.SPOT else 0.0,
    )


def _estimate(
    place: Placement, course: Course, games: tuple[Played, ...], work: Workload, assumed: Assumptions
) -> CandidateEstimate:
    bills = [_bill_usd(place, game, work, assumed) for game in games]
    known = [bill for bill in bills if bill is not None]
    return CandidateEstimate(
        placement=place,
        hours=quantiles([game.wall_s / SECONDS_PER_HOUR for game in games]),
        cost_usd=quantiles(known) if len(known) == len(bills) else None,
        preemptions=sum(game.losses for game in games) / len(games),
        course=course,
    )


def _bill_usd(place: Placement, game: Played, work: Workload, assumed: Assumptions) -> float | None:
    """Machines + state read again after each loss + checkpoints kept; inf for a run that never finishes."""
    machines_usd = compute_usd(place, game.billed_s)
    if machines_usd is None or math.isinf(game.wall_s):
        return machines_usd
    state_gb = work.num_parameters * STATE_BYTES_PER_PARAMETER / _GB
    egress_usd = game.losses * state_gb * assumed.egress_usd_per_gb
    months = game.wall_s / SECONDS_PER_HOUR / _HOURS_PER_MONTH
    return machines_usd + egress_usd + assumed.checkpoints_kept * state_gb * months * assumed.storage_usd_per_gb_month


def factors(plan: LaunchPlan, work: Workload, assumed: Assumptions | None = None) -> tuple[str, ...]:
    """The sentences to print under an estimate: every factor, and where it comes from."""
    priors = assumed or Assumptions()
    first = course_of(plan.candidates[0], plan, work, priors)
    return (
        f"Work: 6 FLOPs x {work.num_parameters / 1e9:.2f} B parameters x {work.tokens / 1e6:.1f} M tokens over "
        f"{plan.world_size} GPUs at an MFU of {priors.mfu:.0%} = {first.work_s / SECONDS_PER_HOUR:.2f} h, "
        f"give or take {priors.mfu_spread:.0%}.",
        f"Start: {first.start_s / 60:.0f} min to boot, install and load the weights; after a loss "
        f"{priors.away_s / 60:.0f} min to find another machine and {first.restart_s / 60:.0f} min to load the state.",
        f"Preemptions: {priors.hazard.per_node_hour:.2f} a spot machine hour ({priors.hazard.source}); "
        f"saved every {first.save_interval_s / 60:.1f} min.",
    )
