"""GPUs as people name them -> the offers that have them; what is not sold is answered with what is. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from cluster.errors import PlanError
from cluster.price.offers import Offer

_MAX_NAMED = 6


def offers_with_gpus(
    offers: Iterable[Offer],
    name: str,
    count: int | None,
    *,
    asked: str,
    sellers: Iterable[str],
    key: str,
    elsewhere: str = "",
) -> list[Offer]:
    """Keep the machines with these GPUs, upper and lower case aside.

    Args:
        name, count: GPUs of one machine; None for any number of them.
        asked: how the wish was written, for the error: `compute.gpus is A100-80G:8`.
        sellers: the clouds that `offers` are from, for the error.
        key: what to set, as it is written: `gpus: `.
        elsewhere: what else could be done about a count that nobody sells, for the error.

    Raises:
        PlanError: nobody sells such a GPU, or not so many in one machine; names the nearest that is sold.
    """
    listed = list(offers)
    names = sorted({offer.gpu_name for offer in listed if offer.gpu_name})
    found = next((one for one in names if one.lower() == name.lower()), None)
    if found is None:
        close = difflib.get_close_matches(name.lower(), {one.lower(): one for one in names}, n=1, cutoff=0.5)
        near = next((one for one in names if close and one.lower() == close[0]), None)
        hint = f"Did you mean {near}{f':{count}' if count else ''}?" if near else f"There are: {join(names)}."
        raise PlanError(f"{asked}, but no {name} is sold by {join(sellers)}. {hint}")
    counts = sorted({offer.gpu_count for offer in listed if offer.gpu_name == found})
    if count is not None and count not in counts:
        raise PlanError(
            f"{asked}, but {found} is sold by {join(sellers)} only with {join(map(str, counts))} in a machine. "
            f"Set {key}{found}:{_nearest(count, counts)}{elsewhere}."
        )
    return [offer for offer in listed if offer.gpu_name == found and count in (None, offer.gpu_count)]


def nearest_region(region: str, regions: Sequence[str]) -> str:
    """What to say about a region that is none: the nearest one, or those there are."""
    close = difflib.get_close_matches(region, regions, n=1)
    return f"Did you mean {close[0]}?" if close else f"There are: {join(regions)}."


def join(names: Iterable[str]) -> str:
    """Names for a sentence, the first few of many."""
    listed = list(names)
    rest = f" and {len(listed) - _MAX_NAMED} more" if len(listed) > _MAX_NAMED else ""
    return ", ".join(listed[:_MAX_NAMED]) + rest


def _nearest(wanted: int, counts: Sequence[int]) -> int:
    """The next larger count, or the largest."""
    return min((count for count in counts if count >= wanted), default=max(counts))
