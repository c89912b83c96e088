"""`gpus: auto`: which machine finishes the whole training for least, set-up and preemptions counted. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alpaca_jobs.spec import JobSpec
from cluster.course import expected
from cluster.errors import PlanError
from cluster.plan import SECONDS_PER_HOUR
from cluster.price.assumptions import Assumptions
from cluster.price.courses import training_course
from cluster.price.offers import Offer
from cluster.price.side_machines import placement_of_offer
from cluster.price.workload import Workload


@dataclass(frozen=True)
class ShapeCost:
    """What training on one shape of machine (NAME:COUNT) is expected to cost, in its cheapest place."""

    gpus: str
    usd: float
    hours: float

    def __str__(self) -> str:
        return f"{self.gpus} {self.usd:.2f} USD in {self.hours:.2f} h"


def rank_shapes(
    job: JobSpec, offers: Iterable[Offer], work: Workload, assumed: Assumptions
) -> tuple[ShapeCost, ...]:  # fmt: skip
    """Put the shapes in order of what the training is expected to cost; ties go to the faster one.

    Args:
        offers: priced, of machines that hold the model.

    Returns:
        Shapes whose speed is known and that can be expected to finish; those that keep the deadline first.
    """
    best: dict[str, ShapeCost] = {}
    for offer in offers:
        assert offer.gpus is not None
        cost = _cost(job, offer, work, assumed)
        if cost is not None and (offer.gpus not in best or cost.usd < best[offer.gpus].usd):
            best[offer.gpus] = cost
    deadline_h = job.limits.deadline_h
    return tuple(
        sorted(
            best.values(),
            key=lambda one: (deadline_h is not None and one.hours > deadline_h, one.usd, one.hours, one.gpus),
        )
    )


def _cost(job: JobSpec, offer: Offer, work: Workload, assumed: Assumptions) -> ShapeCost | None:
    place = placement_of_offer(offer, num_nodes=job.compute.num_nodes)
    try:
        course = training_course(place, job, work, assumed)
    except PlanError:  # a GPU whose peak is not known cannot be compared
        return None
    if course is None:
        return None
    mean = expected(course)
    usd = place.usd_for(mean.billed_s)
    if usd is None or mean.billed_s == float("inf"):
        return None
    return ShapeCost(offer.gpus or "", usd, mean.wall_s / SECONDS_PER_HOUR)
