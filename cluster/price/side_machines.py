"""The machines beside the ones that train: one that has the rows written, one that watches over the job. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alpaca_jobs.spec import JobSpec
from cluster.plan import Placement, Pricing
from cluster.price.offers import Offer

# The managed-jobs controller of SkyPilot: 4 or more vCPUs, 4 times as many GiB, on demand.
# Source: CONTROLLER_RESOURCES in sky/jobs/constants.py of SkyPilot 0.14.1.
CONTROLLER_VCPUS = 4
CONTROLLER_GIB_PER_VCPU = 4
# Asking a teacher is waiting; the machine needs room for Ray and the dedupe.
GENERATION_VCPUS = 4


@dataclass(frozen=True)
class SideMachines:
    """Both, where they are needed and sold.

    Attributes:
        generation: a machine without GPUs, so that no GPU waits for a teacher; None: rows are written where the
            training runs, as those of a job without GPUs always are.
        controller: None on this machine, or where no price list has such a machine.
    """

    generation: Placement | None = None
    controller: Placement | None = None


def side_machines(job: JobSpec, offers: Iterable[Offer]) -> SideMachines:
    """Pick the cheapest of each among offers without GPUs, in the job's regions where these sell any.

    Args:
        offers: of machines without GPUs, of the job's clouds.
    """
    if job.compute.is_local:
        return SideMachines()
    listed = [one for one in offers if one.price_per_hour_usd is not None and one.gpu_name is None]
    pricing = Pricing.ON_DEMAND if job.compute.spot_policy is None else Pricing.SPOT
    generation = None
    if "generate" in job.stages and job.compute.gpus is not None:
        generation = _cheapest(job, [o for o in listed if o.pricing is pricing and (o.vcpus or 0) >= GENERATION_VCPUS])
    watching = [o for o in listed if o.pricing is Pricing.ON_DEMAND and _can_watch(o)]
    return SideMachines(generation, _cheapest(job, watching))


def _can_watch(offer: Offer) -> bool:
    vcpus, memory_gib = offer.vcpus or 0, offer.memory_gib or 0
    return vcpus >= CONTROLLER_VCPUS and memory_gib >= CONTROLLER_GIB_PER_VCPU * CONTROLLER_VCPUS


def _cheapest(job: JobSpec, offers: list[Offer]) -> Placement | None:
    regions = job.compute.regions or ()
    near = [one for one in offers if one.region in regions] or offers
    best = min(
        near, key=lambda one: (one.price_per_hour_usd or 0.0, one.infra, one.region, one.zone or ""), default=None
    )
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
