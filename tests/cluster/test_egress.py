"""What a save from another region is billed, and where none is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.egress import paid_s_per_byte
from cluster.plan import Placement, Pricing

HOME = Placement("aws", "us-east-1", None, "p4de.24xlarge", Pricing.SPOT, 9.0, 2, "A100-80GB:8")
AWAY = replace(HOME, region="us-west-2")


def test_a_byte_from_elsewhere_costs_seconds_of_the_machines_there() -> None:
    """81 GB at 0.02 USD are 1.62 USD, which is 324 s of two machines at 9 USD an hour."""
    assert 81e9 * paid_s_per_byte(HOME, AWAY) == pytest.approx(1.62 / 18 * 3600)


@pytest.mark.parametrize(
    "here",
    [
        HOME,
        replace(HOME, zone="us-east-1b"),
        replace(AWAY, infra="local"),
        replace(AWAY, price_per_hour_usd=None),
        replace(AWAY, price_per_hour_usd=0.0),
    ],
)
def test_nothing_is_paid_at_home_on_local_or_where_machines_have_no_price(here: Placement) -> None:
    assert paid_s_per_byte(HOME, here) == 0.0
