"""What it costs that a run's store stays where it was launched: every save from another region is billed."""

from __future__ import annotations

from typing import Final

from cluster.plan import Placement

USD_PER_GB: Final = 0.02
"""Between regions; 10^9 bytes. Source: AWS, between its regions in the US, 2024. Between two clouds it is more."""


def paid_s_per_byte(home: Placement, here: Placement, *, usd_per_gb: float = USD_PER_GB) -> float:
    """What sending a byte to the store costs, as seconds of the machines at their price.

    Args:
        home: where the plan begins, and the store is taken to be.
        here: where the machines are.

    Returns:
        0.0 at home, on local, and for machines that are free or of unknown price.
    """
    usd_per_s = here.usd_for(1.0)
    if here.infra == "local" or here.name == home.name or not usd_per_s:
        return 0.0
    return usd_per_gb / 1e9 / usd_per_s
