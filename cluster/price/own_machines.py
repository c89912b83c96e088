"""Machines of the user's own as offers: a Kubernetes or Slurm cluster, machines reached by SSH. Nobody bills them.

SkyPilot finds the machine; what is offered is what the job asks for, in each cluster that it names, at 0 USD.
"""

from __future__ import annotations

from typing import Final

from alpaca_jobs.spec_compute import ComputeSpec
from cluster.plan import Pricing
from cluster.price.offers import Offer, PriceList

ANYWHERE: Final = "any"
"""The region of a place where the job names no cluster: SkyPilot takes the one that is current there."""

OWN_MACHINES: Final = (
    "{infra}: machines of your own. Nothing is billed by the hour and nothing is spot, so no price is compared; a lost "
    "node is started again in the same cluster, whose own queue decides when; and `limits.max_usd` counts the teacher "
    "alone."
)


def own_offers(compute: ComputeSpec) -> PriceList:
    """One offer for each cluster, in the job's order."""
    cpus = (compute.workers or 1) * compute.threads_per_worker
    gpus = compute.gpu_request
    return PriceList(
        tuple(
            Offer(
                infra=infra,
                region=region,
                zone=None,
                instance_type=f"{gpus.name}:{gpus.count}" if gpus else f"{cpus} CPUs",
                pricing=Pricing.ON_DEMAND,
                price_per_hour_usd=0.0,
                gpu_name=gpus.name if gpus else None,
                gpu_count=gpus.count if gpus else 0,
                vcpus=None if gpus else float(cpus),
            )
            for infra in compute.infra
            for region in compute.regions or (ANYWHERE,)
        )
    )
