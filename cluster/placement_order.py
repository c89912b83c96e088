"""Where a run goes next: the plan's candidates in the order that its losses leave. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from cluster.plan import Placement, Pricing
from cluster.recovery_policy import RecoveryPolicy
from cluster.recovery_table import TABLE
from cluster.stop import Stop, StopReason

# A region that took a machine away is tried after the others for this long. Source: the spot availability traces of
# SkyPilot's study (aws-10-26-2022, V100, four single-node series of 10-minute ticks): of 967 stretches without
# capacity, three quarters were over within 60 minutes in every series; half within 10 to 30.
COOL_DOWN_S: Final = 3600.0

_LOSSES: Final = frozenset({StopReason.PREEMPTED, StopReason.LOST, StopReason.NODE_FAILURE})


def placement_order(
    candidates: Sequence[Placement],
    policy: RecoveryPolicy,
    history: Sequence[Stop],
    now: float,
    *,
    first: Pricing = Pricing.SPOT,
) -> tuple[Placement, ...]:
    """Order candidates for the launch after a history whose newest stop was no refused launch.

    `next-region` keeps the plan's order, but regions that took a machine away within COOL_DOWN_S come last, the
    newest loss at the very end. After a crash, which was no fault of the place, the place comes first. `cheapest`
    orders by price (an unknown one last) and uses the same rule only between equals. Whatever is paid for as `first`
    says comes before all that is not.
    """
    order = list(candidates)
    if history:
        last = history[-1]
        order.sort(key=lambda one: _loss_rank(one, history, now))
        if TABLE[last.reason].region == "same":
            order.sort(key=lambda one: not _same_region(one, last.placement))
    if policy.recover == "cheapest":
        order.sort(key=lambda one: math.inf if one.job_price_per_hour_usd is None else one.job_price_per_hour_usd)
    order.sort(key=lambda one: one.pricing is not first)
    return tuple(order)


def _loss_rank(place: Placement, history: Sequence[Stop], now: float) -> int:
    """0 for a region that took nothing away lately; the more recent its last loss, the higher. The newest stop counts
    however long ago it was: nothing has been heard of that region since."""
    for rank in range(len(history), 0, -1):
        stop = history[rank - 1]
        is_recent = rank == len(history) or now - stop.at_s < COOL_DOWN_S
        if stop.reason in _LOSSES and is_recent and _same_region(place, stop.placement):
            return rank
    return 0


def _same_region(one: Placement, other: Placement) -> bool:
    return (one.infra, one.region) == (other.infra, other.region)
