"""How often an attempt's machines are expected to go, from its claim and what the run has seen before it."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints.lineage import AttemptRecord
from cluster.hazard import BREAKS_PER_NODE_HOUR, PRIOR_PER_NODE_HOUR, losses_per_hour
from cluster.plan import Placement, Pricing


def _record(
    number: int, region: str = "us-east-1", *, end: dict[str, Any] | None = None, **place: Any
) -> AttemptRecord:
    known = {"infra": "aws", "zone": None, "instance_type": "p4d", "pricing": Pricing.SPOT, "num_nodes": 2, **place}
    placement = Placement(region=region, price_per_hour_usd=None, **known)
    return AttemptRecord(number, {"placement": placement.to_json()}, has_base=True, base=None, end=end)


def test_spot_machines_go_by_the_prior_each_of_them() -> None:
    assert losses_per_hour([_record(1)], 1) == pytest.approx(2 * PRIOR_PER_NODE_HOUR)


def test_what_the_run_has_seen_in_this_region_moves_it_and_another_region_does_not() -> None:
    taken = {"stop_reason": "preempted", "seconds": 600.0}
    quiet = losses_per_hour([_record(1, end={"stop_reason": "user_error", "seconds": 36000.0}), _record(2)], 2)
    losing = losses_per_hour([_record(1, end=taken), _record(2, end=taken), _record(3)], 3)
    elsewhere = losses_per_hour([_record(1, "us-west-2", end=taken), _record(2)], 2)
    assert quiet < elsewhere < losing
    assert elsewhere == pytest.approx(2 * PRIOR_PER_NODE_HOUR)


@pytest.mark.parametrize("place", [{"pricing": Pricing.ON_DEMAND}, {"infra": "local"}])
def test_machines_that_nobody_takes_away_still_break(place: dict[str, Any]) -> None:
    assert losses_per_hour([_record(1, **place)], 1) == pytest.approx(2 * BREAKS_PER_NODE_HOUR)
    assert 0 < BREAKS_PER_NODE_HOUR < PRIOR_PER_NODE_HOUR / 100


def test_an_attempt_without_a_place_is_expected_to_stay() -> None:
    assert losses_per_hour([AttemptRecord(1, {}, has_base=False, base=None, end=None)], 1) == 0.0
