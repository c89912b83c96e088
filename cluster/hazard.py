"""How often machines are lost: priors with their sources, and what one's own runs have shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from checkpoints.lineage import AttemptRecord
from cluster.plan import Placement, Pricing
from cluster.recovery import StopReason

# Source: preemption traces of 4 x V100 on AWS, three zones of us-east-1, us-east-2 and us-west-2, from 2023-08-03 on:
# 600 machines were taken away in 3,066 machine hours, 0.06 to 0.46 an hour by zone (skypilot-org/spot-traces,
# preemption/4-node/aws-08-03-2023; a machine is lost where the count falls between two ticks). No such trace is public
# for A100 or H100, so this is a prior.
PRIOR_PER_NODE_HOUR = 600 / 3066
PRIOR_SOURCE = "AWS V100 traces of 2023-08, 0.06 to 0.46 an hour by zone"

BREAKS_PER_NODE_HOUR = 419 / (54 * 24 * 2048)
"""Machines that nobody takes away. Source: The Llama 3 Herd of Models (arXiv:2407.21783), section 3.3.4: 419 unexpected
interruptions in 54 days on 16,384 GPUs, which are 2,048 machines."""

_TAKEN_AWAY = (StopReason.PREEMPTED.value, StopReason.LOST.value)

# How many machine hours of one's own outweigh the prior: half the weight after this many.
_PRIOR_WEIGHT_H = 20.0


@dataclass(frozen=True)
class Hazard:
    """Expected preemptions of one machine in an hour, and where the number comes from."""

    per_node_hour: float
    source: str


def spot_hazard(*, own_preemptions: int = 0, own_node_hours: float = 0.0, prior: float = PRIOR_PER_NODE_HOUR) -> Hazard:
    """The prior, moved by one's own reports as they gather.

    Args:
        own_preemptions, own_node_hours: over spot machines of earlier runs.
        prior: preemptions of a machine in an hour that were expected before.
    """
    weighted = prior * _PRIOR_WEIGHT_H + own_preemptions
    source = PRIOR_SOURCE
    if own_node_hours > 0:
        source = f"{own_preemptions} preemptions in {own_node_hours:.0f} machine hours of your own, and {PRIOR_SOURCE}"
    return Hazard(weighted / (_PRIOR_WEIGHT_H + own_node_hours), source)


def losses_per_hour(records: Iterable[AttemptRecord], attempt: int) -> float:
    """Expected losses of an attempt's machines in an hour, all of them together: what "auto" saves by.

    On spot machines the prior, moved by what earlier attempts of this run have seen in the same region; elsewhere the
    rate at which machines break. Pretend regions are emptied by drills, not by a market: there it is the latter too.

    Args:
        records: of the run's attempts; this one's claim says where it is.
    """
    records = list(records)
    places = {record.number: _place(record) for record in records}
    here = places.get(attempt)
    if here is None:
        return 0.0
    if here.pricing is not Pricing.SPOT or here.infra == "local":
        return BREAKS_PER_NODE_HOUR * here.num_nodes
    taken, hours = own_losses(one for one in records if one.number < attempt and _is_in(places[one.number], here.name))
    return spot_hazard(own_preemptions=taken, own_node_hours=hours).per_node_hour * here.num_nodes


def own_losses(records: Iterable[AttemptRecord]) -> tuple[int, float]:
    """(machines taken away, machine hours) of the attempts that have ended on spot machines."""
    taken, hours = 0, 0.0
    for record in records:
        place, end = _place(record), record.end
        if end is None or place is None or place.pricing is not Pricing.SPOT:
            continue
        taken += end.get("stop_reason") in _TAKEN_AWAY
        hours += place.num_nodes * float(end.get("seconds") or 0.0) / 3600
    return taken, hours


def _is_in(place: Placement | None, name: str) -> bool:
    return place is not None and place.name == name


def _place(record: AttemptRecord) -> Placement | None:
    placement = (record.claim or {}).get("placement")
    return Placement.from_json(placement) if placement else None
