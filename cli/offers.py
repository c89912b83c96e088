"""`alpaca-jobs offers`: what can be had where, spot and on demand, and where each price comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, render, words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cluster.price.offers import Offer, PriceList
    from cluster.price.quota import Quota


def offers(
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="NAME[:COUNT]", help="GPUs of one machine; left out: all kinds.")
    ] = None,
    infra: Annotated[
        list[str] | None, typer.Option("--infra", metavar="CLOUD", help="Only this cloud. Repeatable.")
    ] = None,
    region: Annotated[
        list[str] | None, typer.Option("--region", metavar="REGION", help="Only this region. Repeatable.")
    ] = None,
    spot: Annotated[
        bool | None, typer.Option("--spot/--on-demand", help="Only one way of paying.", show_default="both")
    ] = None,
    limit: Annotated[int, typer.Option("--max", "-n", min=1, help="Show at most so many, the cheapest.")] = 20,
    live: Annotated[
        bool, typer.Option("--live", help="Let SkyPilot fetch today's price catalogs first (needs it and a network).")
    ] = False,
    quota: Annotated[
        bool, typer.Option("--quota", help="Ask AWS whether your account may have it (needs your credentials).")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what machines cost where, cheapest first. Prices are list prices.

    Example: alpaca-jobs offers --gpus A100-80GB:8 --spot --quota

    New accounts of AWS may have no large GPU machine at all before they ask for more: --quota shows it.
    """
    from cluster.plan import Pricing
    from cluster.price.offer_query import choose_offers, fetch_prices
    from cluster.price.offers import CLOUDS

    clouds = tuple(infra or ())
    prices = fetch_prices(clouds)  # also says which cloud is none, before anything is fetched
    if live:
        from cluster.cloud.sky_catalogs import refresh_catalogs

        for cloud in refresh_catalogs(clouds or CLOUDS):
            render.say(f"{cloud}: its catalog was written by hand, and SkyPilot does not replace such a one.")
        prices = fetch_prices(clouds)
    pricing = None if spot is None else Pricing.SPOT if spot else Pricing.ON_DEMAND
    found = choose_offers(prices, gpus, regions=region or (), pricing=pricing)
    quotas = _quotas(found[:limit]) if quota else None
    if as_json:
        render.out_json(offers_json(prices, found, limit, quotas))
    elif gpus is None and quotas is None:
        render.out_grid(shapes_grid(prices, found))
    else:
        render.out_grid(offers_grid(prices, found, limit, quotas))


def _quotas(shown: Sequence[Offer]) -> Mapping[Offer, Quota]:
    """What the account may have of the offers that are shown; what kept it from being asked is said once."""
    from cluster.cloud.aws_account import AwsAccount
    from cluster.cloud.aws_quota import quotas_of

    quotas = quotas_of(shown, AwsAccount())
    for why in sorted({one.why for one in quotas.values() if one.source == "new account"}):
        render.say(f"What a new account has is shown instead of yours: {why}")
    return quotas


def offers_json(
    prices: PriceList, found: Sequence[Offer], limit: int, quotas: Mapping[Offer, Quota] | None = None
) -> dict[str, object]:
    """What `--json` prints: offers, how many more there are, and where the prices come from."""
    sources = [{"infra": one.infra, "path": str(one.path), "dated": one.dated} for one in prices.sources]
    return {
        "offers": [
            one.to_json() | ({} if quotas is None else {"quota": quotas[one].to_json()}) for one in found[:limit]
        ],
        "hidden": max(len(found) - limit, 0),
        "sources": sources,
    }


def offers_grid(
    prices: PriceList, found: Sequence[Offer], limit: int, quotas: Mapping[Offer, Quota] | None = None
) -> render.Grid:
    """Offers with a price, cheapest first, with the account's quota if it is known; what is odd about others below."""
    from cluster.price.offer_query import odd_rows

    priced = [one for one in found if one.price_per_hour_usd is not None]
    notes = [f"... and {len(priced) - limit} more: --max {len(priced)}"] if len(priced) > limit else []
    rows = (
        (
            one.infra if one.zone is None else f"{one.infra}/{one.zone}",
            one.region,
            f"{one.instance_type} ({one.gpus})",
            one.pricing.value,
            words.rate(one.price_per_hour_usd),
            words.rate(None if one.price_per_hour_usd is None else one.price_per_hour_usd / max(one.gpu_count, 1)),
            words.number(one.vcpus),
            words.number(one.memory_gib),
            *(() if quotas is None else (str(quotas[one]),)),
        )
        for one in priced[:limit]
    )
    columns = ("where", "region", "machine", "pricing", ">price", ">per GPU", ">vCPUs", ">GiB")
    return render.Grid(
        (*columns, *(() if quotas is None else ("may you have one?",))),
        tuple(rows),
        notes=(*notes, *odd_rows(found), _prices_from(prices)),
    )


def shapes_grid(prices: PriceList, found: Sequence[Offer]) -> render.Grid:
    """Every kind of GPU machine with its lowest prices."""
    from cluster.price.offer_query import shapes_of

    rows = (
        (shape.gpus, ", ".join(shape.infra), words.rate(shape.spot_usd), words.rate(shape.on_demand_usd))
        for shape in shapes_of(found)
    )
    return render.Grid(
        ("GPUs", "sold by", ">lowest spot", ">lowest on demand"),
        tuple(rows),
        notes=("Where each is to be had: alpaca-jobs offers --gpus NAME:COUNT", _prices_from(prices)),
    )


def _prices_from(prices: PriceList) -> str:
    by_origin: dict[str, list[str]] = {}
    for source in prices.sources:
        by_origin.setdefault(source.origin, []).append(source.infra)
    return "Prices: " + "; ".join(f"{', '.join(infra)} from {origin}" for origin, infra in by_origin.items()) + "."
