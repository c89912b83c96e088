"""What can be had where: offers chosen by GPUs, regions and pricing, cheapest first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.errors import PlanError
from cluster.plan import Pricing
from cluster.price.gpu_choice import join, nearest_region, offers_with_gpus
from cluster.price.offers import CLOUDS, Offer, PriceList, load_offers


@dataclass(frozen=True)
class Shape:
    """One kind of GPU in one number a machine, and the least it costs by the hour; None where nobody says a price."""

    gpus: str
    infra: tuple[str, ...]
    spot_usd: float | None
    on_demand_usd: float | None


def fetch_prices(infra: Sequence[str]) -> PriceList:
    """Read the price lists of some clouds, or of all; machines with GPUs.

    Raises:
        PlanError: a cloud that there is no price list for.
        CatalogError: a price list that cannot be read.
    """
    wrong = [name for name in infra if name not in CLOUDS]
    if wrong:
        raise PlanError(f"--infra is {wrong[0]}, but there are price lists for {', '.join(CLOUDS)} only.")
    return load_offers(infra or CLOUDS, machines="gpu")


def choose_offers(
    prices: PriceList, gpus: str | None, *, regions: Sequence[str] = (), pricing: Pricing | None = None
) -> list[Offer]:
    """Offers that answer a question, those with a price first, cheapest first.

    Args:
        gpus: NAME, or NAME:COUNT; None for all.
        regions: the clouds' own spelling; empty for all.
        pricing: only this way of paying; None for both.

    Raises:
        PlanError: a GPU that nobody sells, a count that is none, a region that no price list knows.
    """
    sellers = sorted({offer.infra for offer in prices})
    known = sorted({offer.region for offer in prices})
    for region in regions:
        if region not in known:
            near = nearest_region(region, known)
            raise PlanError(f"--region is {region}, which is no region of {join(sellers)}. {near}")
    found: Iterable[Offer] = prices
    if gpus is not None:
        name, count = parse_gpus(gpus)
        found = offers_with_gpus(prices, name, count, asked=f"--gpus is {gpus}", sellers=sellers, key="--gpus ")
    return sorted(
        (
            offer
            for offer in found
            if (not regions or offer.region in regions) and pricing in (None, offer.pricing)
        ),
        key=_order,
    )  # fmt: skip


def parse_gpus(text: str) -> tuple[str, int | None]:
    """NAME or NAME:COUNT -> the two; None for no count. Raises PlanError for anything else."""
    name, colon, count = text.partition(":")
    if not name or (colon and not (count.isascii() and count.isdigit() and int(count) > 0)):
        raise PlanError(f"--gpus is {text:.60}, but NAME or NAME:COUNT is wanted, such as A100-80GB:8.")
    return name, int(count) if colon else None


def shapes_of(offers: Iterable[Offer]) -> tuple[Shape, ...]:
    """What kinds of GPU machines are sold at all, by GPU and count."""
    by_gpus: dict[tuple[str, int], list[Offer]] = {}
    for offer in offers:
        if offer.gpu_name is not None:
            by_gpus.setdefault((offer.gpu_name, offer.gpu_count), []).append(offer)
    return tuple(
        Shape(
            f"{name}:{count}",
            tuple(sorted({offer.infra for offer in group})),
            _lowest(group, Pricing.SPOT),
            _lowest(group, Pricing.ON_DEMAND),
        )
        for (name, count), group in sorted(by_gpus.items())
    )


def odd_rows(offers: Iterable[Offer]) -> tuple[str, ...]:
    """What is odd about some rows, in sentences: cloud, what, how many rows, why."""
    counted = Counter((one.infra, one.pricing, one.price_per_hour_usd is None, one.note) for one in offers if one.note)
    return tuple(
        f"{infra}: {number} {pricing.value} {'row' if number == 1 else 'rows'}"
        f"{' without a price' if is_missing else ''}: {note}."
        for (infra, pricing, is_missing, note), number in sorted(counted.items())
    )


def _lowest(offers: Iterable[Offer], pricing: Pricing) -> float | None:
    prices = [one.price_per_hour_usd for one in offers if one.pricing is pricing]
    return min((price for price in prices if price is not None), default=None)


def _order(offer: Offer) -> tuple[bool, float, str, str, str, str, str]:
    price = offer.price_per_hour_usd
    place = (offer.infra, offer.region, offer.zone or "", offer.instance_type, offer.pricing.value)
    return (price is None, price or 0.0, *place)
