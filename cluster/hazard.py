"""How often spot machines are taken away: a prior with its source, and what one's own runs have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Source: preemption traces of 4 x V100 on AWS, three zones of us-east-1, us-east-2 and us-west-2, from 2023-08-03 on:
# 600 machines were taken away in 3,066 machine hours, 0.06 to 0.46 an hour by zone (skypilot-org/spot-traces,
# preemption/4-node/aws-08-03-2023; counted by `losses`). No such trace is public for A100 or H100, so this is a prior.
PRIOR_PER_NODE_HOUR = 600 / 3066
PRIOR_SOURCE = "AWS V100 traces of 2023-08, 0.06 to 0.46 an hour by zone"

# How many machine hours of one's own outweigh the prior: half the weight after this many.
_PRIOR_WEIGHT_H = 20.0


@dataclass(frozen=True)
class Hazard:
    """Expected preemptions of one machine in an hour, and where the number comes from."""

    per_node_hour: float
    source: str


def spot_hazard(*, own_preemptions: int = 0, own_node_hours: float = 0.0) -> Hazard:
    """The prior, moved by one's own reports as they gather.

    Args:
        own_preemptions, own_node_hours: over spot machines of earlier runs.
    """
    weighted = PRIOR_PER_NODE_HOUR * _PRIOR_WEIGHT_H + own_preemptions
    source = PRIOR_SOURCE
    if own_node_hours > 0:
        source = f"{own_preemptions} preemptions in {own_node_hours:.0f} machine hours of your own, and {PRIOR_SOURCE}"
    return Hazard(weighted / (_PRIOR_WEIGHT_H + own_node_hours), source)


def losses(counts: Sequence[int], *, gap_s: float) -> tuple[int, float]:
    """Count a trace: (machines taken away, machine hours).

    Args:
        counts: how many machines were held at each tick.
        gap_s: seconds between ticks.
    """
    lost = sum(max(before - after, 0) for before, after in pairwise(counts))
    return lost, sum(counts) * gap_s / 3600
