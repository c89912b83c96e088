"""What it costs that a run's store stays where it was launched: every save from another region is billed."""

from __future__ import annotations

from typing import Final

from cluster.plan import Placement

USD_PER_GB: Final = 0.02
"""Between regions; 10^9 bytes. Source: AWS, between its regions in the US, 2024. Between two clouds it is more."""


def paid_s_per_byte(home: Placement, here: Placement) -> float:
    """What sending a byte to the store costs, as seconds of the machines at their price; 0.0 at home.

    Args:
        home: where the plan begins, and the store is taken to be.
        here: where the machines are.
    """
    return 0.0 if here.name == home.name else away_s_per_byte(here)


def away_s_per_byte(place: Placement, *, usd_per_gb: float = USD_PER_GB) -> float:
    """The same of a place that is known not to be the store's.

    Returns:
        0.0 on local, and for machines that are free or of unknown price.
    """
    usd_per_s = place.usd_for(1.0)
    return 0.0 if place.infra == "local" or not usd_per_s else usd_per_gb / 1e9 / usd_per_s
