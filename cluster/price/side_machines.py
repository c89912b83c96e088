"""The machines beside the ones that train: one that has the rows written, one that watches over the job. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from alpaca_jobs.spec import JobSpec, TeacherSpec
from cluster.plan import Placement, Pricing
from cluster.price.account_limits import NOT_ASKED, AccountLimits, is_doubtful
from cluster.price.offers import Offer

# The managed-jobs controller of SkyPilot: 4 or more vCPUs, 4 times as many GiB, on demand.
# Source: CONTROLLER_RESOURCES in sky/jobs/constants.py of SkyPilot 0.14.1.
CONTROLLER_VCPUS = 4
CONTROLLER_GIB_PER_VCPU = 4
# Asking a teacher is waiting; the machine needs room for Ray and the dedupe.
GENERATION_VCPUS = 4
MAX_GENERATION_REGIONS = 12  # tried in order of price; more than that many sold out at once has not been seen


@dataclass(frozen=True)
class SideMachines:
    """Both, where they are needed and sold.

    Attributes:
        generation: a machine without GPUs, so that no GPU waits for a teacher, or with those that a teacher of the
            run's own is served by; None: rows are written where the training runs, as those of a job without GPUs
            mostly are.
        controller: None on this machine, or where no price list has such a machine.
    """

    generation: Placement | None = None
    controller: Placement | None = None


def side_machines(job: JobSpec, offers: Iterable[Offer], limits: AccountLimits = NOT_ASKED) -> SideMachines:
    """Pick the cheapest of each among offers without GPUs, in the job's regions where these sell any.

    Args:
        offers: of machines without GPUs, of the job's clouds.
        limits: what the account said; it was asked about the machines that `offers` lacks.
    """
    if job.compute.is_local or job.compute.is_own:
        return SideMachines()
    offers = list(offers)
    listed = [one for one in offers if one.price_per_hour_usd is not None and one.gpu_name is None]
    generation = next(iter(generation_places(job, offers, limits)), None)
    watching = [o for o in listed if o.pricing is Pricing.ON_DEMAND and _can_watch(o)]
    return SideMachines(generation, _cheapest(job, watching, limits))


def writes_rows_apart(job: JobSpec) -> bool:
    """Whether a job's rows are written on machines of their own, before those that train are started."""
    compute = job.compute
    if compute.is_local or compute.is_own or "generate" not in job.stages:
        return False
    if served_gpus(job) is not None:
        return True
    return compute.gpus is not None if compute.rows_apart is None else compute.rows_apart


def served_gpus(job: JobSpec) -> str | None:
    """GPUs, NAME:COUNT, of the machine that serves the job's own teacher; None where the job names none."""
    teacher = job.data.teacher
    if not isinstance(teacher, TeacherSpec) or teacher.serve is None or teacher.server.gpus is None:
        return None
    name, _, count = teacher.server.gpus.partition(":")
    return f"{name}:{count or 1}"


def generation_places(
    job: JobSpec, offers: Iterable[Offer], limits: AccountLimits = NOT_ASKED
) -> tuple[Placement, ...]:  # fmt: skip
    """Where the rows may be written, best first: the cheapest machine of each region, regions that most accounts have
    not switched on last; none if not apart, or not sold.

    Args:
        offers: of machines without GPUs, of the job's clouds; with the GPUs of `served_gpus` among them, if it has any.
    """
    if not writes_rows_apart(job):
        return ()
    spot = job.compute.spot_policy
    allowed = [Pricing.ON_DEMAND] if spot is None else [Pricing.SPOT]
    if spot is not None and spot.on_demand != "never":
        allowed.append(Pricing.ON_DEMAND)
    gpus = served_gpus(job)
    fitting = [
        one
        for one in offers
        if one.price_per_hour_usd is not None
        and (one.gpus.lower() if one.gpus else None) == (gpus.lower() if gpus else None)
        and (one.vcpus or 0) >= GENERATION_VCPUS
    ]
    regions = job.compute.regions or ()
    near = [one for one in fitting if one.region in regions] or fitting
    found: list[Placement] = []
    for pricing in allowed:
        best: dict[tuple[str, str], Offer] = {}
        for offer in sorted((one for one in near if one.pricing is pricing), key=partial(_by_price, job, limits)):
            best.setdefault((offer.infra, offer.region), offer)
        found += [placement_of_offer(one, num_nodes=1) for one in list(best.values())[:MAX_GENERATION_REGIONS]]
    return tuple(found)


def _by_price(job: JobSpec, limits: AccountLimits, offer: Offer) -> tuple[bool, float, str, str, str]:
    is_last = is_doubtful(offer, limits.trusted(job.compute.regions))
    return (is_last, offer.price_per_hour_usd or 0.0, offer.infra, offer.region, offer.zone or "")


def _can_watch(offer: Offer) -> bool:
    vcpus, memory_gib = offer.vcpus or 0, offer.memory_gib or 0
    return vcpus >= CONTROLLER_VCPUS and memory_gib >= CONTROLLER_GIB_PER_VCPU * CONTROLLER_VCPUS


def _cheapest(job: JobSpec, offers: list[Offer], limits: AccountLimits) -> Placement | None:
    regions = job.compute.regions or ()
    near = [one for one in offers if one.region in regions] or offers
    best = min(near, key=partial(_by_price, job, limits), default=None)
    return None if best is None else placement_of_offer(best, num_nodes=1)


def placement_of_offer(offer: Offer, *, num_nodes: int) -> Placement:
    """An offer, taken `num_nodes` times."""
    return Placement(
        infra=offer.infra,
        region=offer.region,
        zone=offer.zone,
        instance_type=offer.instance_type,
        pricing=offer.pricing,
        price_per_hour_usd=offer.price_per_hour_usd,
        num_nodes=num_nodes,
        gpus=offer.gpus,
    )
