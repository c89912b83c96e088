"""Offers by GPUs, regions and pricing: order, filters, odd rows, and refusals that name the nearest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import PlanError
from cluster.plan import Pricing
from cluster.price.offer_query import Shape, choose_offers, fetch_prices, odd_rows, parse_gpus, shapes_of
from cluster.price.offers import SNAPSHOT, Offer, PriceList, load_offers

SNAPSHOT_PRICES = load_offers(catalogs=SNAPSHOT, machines="gpu")


def offer(region: str, price: float | None, pricing: Pricing = Pricing.SPOT, count: int = 1, note: str = "") -> Offer:
    return Offer("aws", region, None, "g6", pricing, price, "L4", count, note=note)


def test_cheapest_first_and_those_without_a_price_last() -> None:
    prices = PriceList((offer("r1", None, note="why"), offer("r2", 2.0), offer("r3", 1.0, Pricing.ON_DEMAND)))
    assert [one.region for one in choose_offers(prices, "L4:1")] == ["r3", "r2", "r1"]


@given(st.lists(st.one_of(st.none(), st.floats(0.01, 100)), max_size=20), st.sampled_from([None, *Pricing]))
def test_a_filter_only_ever_leaves_out(prices: list[float | None], pricing: Pricing | None) -> None:
    offers = tuple(offer(f"r{i}", price, list(Pricing)[i % 2]) for i, price in enumerate(prices))
    if not offers:
        return
    found = choose_offers(PriceList(offers), None, pricing=pricing)
    assert set(found) == {one for one in offers if pricing in (None, one.pricing)}
    known = [one.price_per_hour_usd for one in found if one.price_per_hour_usd is not None]
    assert known == sorted(known)


def test_gpus_are_found_in_any_case_and_with_or_without_a_count() -> None:
    eight = choose_offers(SNAPSHOT_PRICES, "a100-80gb:8")
    assert {one.gpus for one in eight} == {"A100-80GB:8"}
    assert {one.gpus for one in choose_offers(SNAPSHOT_PRICES, "A100-80GB")} == {f"A100-80GB:{n}" for n in (1, 4, 8)}


def test_regions_and_pricing_are_filters() -> None:
    found = choose_offers(SNAPSHOT_PRICES, "A100-80GB:8", regions=["us-east-1"], pricing=Pricing.ON_DEMAND)
    assert {(one.region, one.pricing) for one in found} == {("us-east-1", Pricing.ON_DEMAND)}


@pytest.mark.parametrize(
    ("gpus", "regions", "message"),
    [
        ("A100-80G:8", [], "--gpus is A100-80G:8, but no A100-80G is sold by .*. Did you mean A100-80GB:8?"),
        ("H100:3", [], "H100 is sold by .* only with 1, 8 in a machine. Set --gpus H100:8."),
        ("L4:x", [], "--gpus is L4:x, but NAME or NAME:COUNT is wanted, such as A100-80GB:8."),
        ("L4:0", [], "NAME or NAME:COUNT is wanted"),
        (":8", [], "NAME or NAME:COUNT is wanted"),
        ("L4:1", ["us-east-11"], "--region is us-east-11, which is no region of .*. Did you mean us-east-1?"),
    ],
)
def test_what_is_not_sold_is_answered_with_what_is(gpus: str, regions: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message.replace("?", r"\?")):
        choose_offers(SNAPSHOT_PRICES, gpus, regions=regions)


def test_cloud_without_a_price_list_is_refused() -> None:
    with pytest.raises(PlanError, match="--infra is ibm, but there are price lists for aws, gcp, azure"):
        fetch_prices(["ibm"])


def test_parse_gpus() -> None:
    assert parse_gpus("H100:8") == ("H100", 8)
    assert parse_gpus("H100") == ("H100", None)


def test_shapes_have_their_lowest_price_of_each_kind() -> None:
    single = (offer("r1", 2.0), offer("r2", 1.0), offer("r3", None), offer("r1", 4.0, Pricing.ON_DEMAND))
    prices = (*single, offer("r", 9.0, count=8))
    assert shapes_of(prices) == (Shape("L4:1", ("aws",), 1.0, 4.0), Shape("L4:8", ("aws",), 9.0, None))


def test_odd_rows_are_counted_with_their_reason() -> None:
    odd = odd_rows(load_offers(["azure", "lambda"], catalogs=SNAPSHOT, machines="gpu"))
    assert "lambda: 102 spot rows without a price: the catalog lists no spot price." in odd
    assert "azure: 3 on_demand rows: the catalog says 12 GPUs, the cloud 8." in odd
    assert odd_rows([offer("r", None, note="why")]) == ("aws: 1 spot row without a price: why.",)
