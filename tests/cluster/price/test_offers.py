"""Offers from catalogs: joined prices, missing prices, odd rows; numbers as the catalog has them."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.errors import CatalogError
from cluster.plan import Pricing
from cluster.price.offers import CLOUDS, SNAPSHOT, Offer, PriceList, load_offers, local_offers


@pytest.fixture(autouse=True)
def _no_catalogs_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def find(prices: PriceList, infra: str, place: str, gpus: str | None, pricing: Pricing) -> list[Offer]:
    """Offers in a zone (or region) with these GPUs."""
    return [
        o
        for o in prices
        if o.infra == infra and place in (o.zone, o.region) and o.gpus == gpus and o.pricing is pricing
    ]


def test_every_cloud_of_the_snapshot_has_offers() -> None:
    assert {offer.infra for offer in load_offers()} == set(CLOUDS)


def test_aws_prices_are_read_as_they_stand() -> None:
    prices = load_offers(["aws"])
    spot = find(prices, "aws", "use1-az6", "A100-80GB:8", Pricing.SPOT)
    assert [offer.price_per_hour_usd for offer in spot] == [8.6505]
    assert (spot[0].instance_type, spot[0].vcpus, spot[0].region) == ("p4de.24xlarge", 96.0, "us-east-1")


def test_gcp_price_is_host_plus_gpus_of_the_same_zone() -> None:
    prices = load_offers(["gcp"])
    with (SNAPSHOT / "gcp" / "vms.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["AvailabilityZone"] == "us-east5-a"]
    host = next(row for row in rows if row["InstanceType"] == "a2-ultragpu-8g")
    gpus = next(row for row in rows if (row["AcceleratorName"], row["AcceleratorCount"]) == ("A100-80GB", "8"))
    for pricing, column in ((Pricing.ON_DEMAND, "Price"), (Pricing.SPOT, "SpotPrice")):
        (offer,) = find(prices, "gcp", "us-east5-a", "A100-80GB:8", pricing)
        assert offer.price_per_hour_usd == pytest.approx(float(host[column]) + float(gpus[column]))
        assert (offer.instance_type, offer.vcpus) == ("a2-ultragpu-8g", 96.0)


def test_gcp_zone_without_the_host_sells_no_such_machine() -> None:
    prices = load_offers(["gcp"])
    with (SNAPSHOT / "gcp" / "vms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    hosts = {row["AvailabilityZone"] for row in rows if row["InstanceType"] == "a3-highgpu-8g"}
    gpus = {r["AvailabilityZone"] for r in rows if (r["AcceleratorName"], r["AcceleratorCount"]) == ("H100", "8")}
    assert gpus - hosts, "the snapshot has such zones"
    assert {offer.zone for offer in prices if offer.gpus == "H100:8"} == gpus & hosts


def test_gcp_host_made_for_gpus_is_not_sold_without() -> None:
    kinds = {offer.instance_type for offer in load_offers(["gcp"]) if offer.gpus is None}
    assert kinds == {"n1-highmem-8", "n2-standard-4", "n2-standard-8"}


def test_empty_spot_price_is_none_and_says_so() -> None:
    prices = load_offers(["aws", "lambda"])
    missing = [offer for offer in prices if offer.price_per_hour_usd is None]
    assert len([offer for offer in missing if offer.infra == "aws"]) == 13  # p3 and p5 zones of the snapshot
    assert len([offer for offer in missing if offer.infra == "lambda"]) == 102  # all of them
    assert {(offer.pricing, offer.note) for offer in missing} == {(Pricing.SPOT, "the catalog lists no spot price")}


@pytest.mark.parametrize("infra", ["runpod", "azure"])
def test_spot_price_that_repeats_the_full_price_is_none(infra: str) -> None:
    odd = [offer for offer in load_offers([infra]) if "repeats the full price" in offer.note]
    assert odd
    assert {offer.price_per_hour_usd for offer in odd} == {None}
    if infra == "azure":
        assert {offer.instance_type for offer in odd} == {"Standard_ND96isr_H100_v5"}


def test_aws_spot_price_at_the_cap_is_a_real_price() -> None:
    (offer,) = find(load_offers(["aws"]), "aws", "apne1-az4", "A10G:4", Pricing.SPOT)
    assert offer.price_per_hour_usd == 8.2261


def test_azure_h100_machine_has_eight_gpus() -> None:
    kinds = {offer.gpus for offer in load_offers(["azure"]) if offer.instance_type == "Standard_ND96isr_H100_v5"}
    assert kinds == {"H100:8"}


def test_no_price_is_zero() -> None:
    assert not [offer for offer in load_offers() if offer.price_per_hour_usd == 0]


def test_this_machine_costs_nothing_and_keeps_the_order_of_its_regions() -> None:
    offers = load_offers(["local"], local_regions=["c", "a"]).offers
    assert offers == tuple(local_offers(["c", "a"]))
    assert [(offer.region, offer.price_per_hour_usd, offer.zone) for offer in offers] == [
        ("c", 0.0, None),
        ("a", 0.0, None),
    ]


HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch"
)


def write_catalog(folder: Path, rows: Sequence[str], header: str = HEADER) -> Path:
    file = folder / "aws" / "vms.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_skypilots_own_catalog_wins_and_its_day_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "home" / ".sky" / "catalogs" / "v8"
    file = write_catalog(folder, ['x1,L4,1.0,4.0,16.0,"{""Gpus"": []}",1.5,0.5,us-east-1,use1-az1,x86_64'])
    os.utime(file, (1_767_225_600, 1_767_225_600))
    prices = load_offers(["aws", "lambda"])
    assert [(o.instance_type, o.price_per_hour_usd) for o in prices if o.infra == "aws"] == [("x1", 1.5), ("x1", 0.5)]
    assert [str(source) for source in prices.sources] == [
        "aws from SkyPilot's catalog of 2026-01-01",
        "lambda from the snapshot that ships with alpaca-jobs (undated)",
    ]


def test_torn_last_line_is_left_out(tmp_path: Path) -> None:
    write_catalog(tmp_path, ["x1,L4,1,4,16,,1.5,0.5,us-east-1,use1-az1,x86_64", "x2,L4,1,4"])
    assert {offer.instance_type for offer in load_offers(["aws"], catalogs=tmp_path)} == {"x1"}


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a,b"], "InstanceType,Price", "has no column AcceleratorName; is it a SkyPilot price catalog"),
        (["x,L4,1,4,16,,cheap,0.5,r,z,a"], HEADER, "holds a value that is not a number: could not convert"),
    ],
)
def test_catalog_that_is_none_is_refused_in_words(tmp_path: Path, rows: list[str], header: str, message: str) -> None:
    write_catalog(tmp_path, rows, header)
    with pytest.raises(CatalogError, match=message):
        load_offers(["aws"], catalogs=tmp_path)


def test_catalog_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"aws/vms\.csv cannot be read: No such file"):
        load_offers(["aws"], catalogs=tmp_path)


def test_snapshot_is_read_quickly() -> None:
    """0.02 s on the 2-core machine this was written on; the limit leaves room for a busy one."""
    best = min(_timed() for _ in range(3))
    assert best < 0.3


def _timed() -> float:
    start = time.perf_counter()
    load_offers()
    return time.perf_counter() - start


def test_machines_with_and_without_gpus_together_are_all() -> None:
    with_gpus, without = load_offers(machines="gpu"), load_offers(machines="cpu")
    assert {offer.gpu_count > 0 for offer in with_gpus} == {True}
    assert {offer.gpus for offer in without} == {None}
    assert len(with_gpus) + len(without) == len(load_offers())
