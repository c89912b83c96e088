"""Offer: one kind of machine in one place at one price. Read from price catalogs in SkyPilot's CSV format.

SkyPilot's own cached catalogs (~/.sky/catalogs/v8/<cloud>/vms.csv) are used where they are there, else the snapshot in
cluster/price/catalogs/. SkyPilot itself is not imported, and neither is pandas. Odd rows are put right here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cluster.errors import CatalogError
from cluster.plan import Pricing

CLOUDS = ("aws", "gcp", "azure", "lambda", "runpod", "nebius")
SNAPSHOT = Path(__file__).parent / "catalogs" / "v8"
_SKYPILOT_CATALOGS = Path("~/.sky/catalogs/v8")

# (cloud, instance type) -> GPUs it really has. Source: learn.microsoft.com, ND-H100-v5 size series: "eight NVIDIA H100
# Tensor Core GPUs"; the catalog says 12.
_GPU_COUNT_FIXES = {("azure", "Standard_ND96isr_H100_v5"): 8}

# Clouds where a spot price equal to the full price means that there is no spot price. (On AWS it is a real one: spot is
# capped at the on-demand price.)
_EQUAL_MEANS_NO_SPOT = {
    "runpod": "the catalog repeats the full price; secure cloud has no spot machines",
    "azure": "the catalog repeats the full price",
}

# GPU and count -> the machines it can be attached to, on GCP, whose catalog prices the two apart.
# Source: sky/catalog/gcp_catalog.py of SkyPilot 0.14.1, from cloud.google.com/compute/docs/gpus.
_GCP_HOSTS: dict[tuple[str, int], tuple[str, ...]] = {
    **{("A100", n): (f"a2-highgpu-{n}g",) for n in (1, 2, 4, 8)},
    ("A100", 16): ("a2-megagpu-16g",),
    **{("A100-80GB", n): (f"a2-ultragpu-{n}g",) for n in (1, 2, 4, 8)},
    **{("H100", n): (f"a3-highgpu-{n}g",) for n in (1, 2, 4, 8)},
    ("H100-MEGA", 8): ("a3-megagpu-8g",),
    ("H200", 8): ("a3-ultragpu-8g",),
    ("L4", 1): tuple(f"g2-standard-{n}" for n in (4, 8, 12, 16, 32)),
    ("L4", 2): ("g2-standard-24",),
    ("L4", 4): ("g2-standard-48",),
    ("L4", 8): ("g2-standard-96",),
    **{("V100", n): (f"n1-highmem-{8 * n}",) for n in (1, 2, 4, 8)},
}
_GCP_ONLY_WITH_GPU = ("a2-", "a3-", "g2-")


@dataclass(frozen=True)
class Offer:
    """One kind of machine in one place under one way of paying.

    Attributes:
        infra, region, zone: as in Placement.
        price_per_hour_usd: for one machine, GPUs included; None when the catalog gives no price, and then `note` says
            why. Never 0 for "unknown".
        note: what is odd about the row, and what was done about it.
        gpu_name, gpu_count: GPUs of one machine; None and 0 without.
        vcpus, memory_gib: host size, None when unknown.
    """

    infra: str
    region: str
    zone: str | None
    instance_type: str
    pricing: Pricing
    price_per_hour_usd: float | None
    gpu_name: str | None = None
    gpu_count: int = 0
    vcpus: float | None = None
    memory_gib: float | None = None
    note: str = ""

    @property
    def gpus(self) -> str | None:
        """NAME:COUNT, or None without GPUs."""
        return f"{self.gpu_name}:{self.gpu_count}" if self.gpu_name else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, `pricing` by its value."""
        return {**asdict(self), "pricing": self.pricing.value, "gpus": self.gpus}


@dataclass(frozen=True)
class PriceSource:
    """Where a cloud's prices come from.

    Attributes:
        dated: day on which SkyPilot wrote its cached file, or None for the snapshot, which carries no date.
    """

    infra: str
    path: Path
    dated: str | None

    @property
    def origin(self) -> str:
        """Where from, in words."""
        if self.dated is None:
            return "the snapshot that ships with alpaca-jobs (undated)"
        return f"SkyPilot's catalog of {self.dated}"

    def __str__(self) -> str:
        return f"{self.infra} from {self.origin}"


@dataclass(frozen=True)
class PriceList:
    """Offers and where they come from."""

    offers: tuple[Offer, ...]
    sources: tuple[PriceSource, ...] = ()

    def __iter__(self) -> Iterator[Offer]:
        return iter(self.offers)

    def __len__(self) -> int:
        return len(self.offers)


def load_offers(
    infra: Sequence[str] = CLOUDS,
    *,
    local_regions: Iterable[str] = (),
    catalogs: Path | None = None,
    machines: Literal["all", "gpu", "cpu"] = "all",
) -> PriceList:
    """Read the offers of some clouds.

    Args:
        infra: which clouds; "local" gives this machine's pretend regions, at 0 USD.
        local_regions: the pretend regions.
        catalogs: folder with <cloud>/vms.csv; None for SkyPilot's cache where it has the cloud, else the snapshot.
        machines: only those with GPUs, or only those without; SkyPilot's full catalogs have 60,000 rows, most without.

    Raises:
        CatalogError: a catalog that cannot be read or misses columns.
    """
    offers: list[Offer] = []
    sources: list[PriceSource] = []
    for cloud in infra:
        if cloud == "local":
            offers.extend(local_offers(local_regions))
            continue
        source = _source(cloud, catalogs)
        offers.extend(_read_catalog(cloud, source.path, machines))
        sources.append(source)
    return PriceList(tuple(offers), tuple(sources))


def local_offers(regions: Iterable[str]) -> list[Offer]:
    """This machine as if it were a cloud: one offer a pretend region, in the given order, for nothing."""
    return [Offer("local", region, None, "process", Pricing.ON_DEMAND, 0.0) for region in regions]


def _source(cloud: str, catalogs: Path | None) -> PriceSource:
    if catalogs is not None:
        return PriceSource(cloud, catalogs / cloud / "vms.csv", None)
    cached = _SKYPILOT_CATALOGS.expanduser() / cloud / "vms.csv"
    if cached.is_file():
        return PriceSource(cloud, cached, datetime.fromtimestamp(_fetched_at_s(cached), UTC).date().isoformat())
    return PriceSource(cloud, SNAPSHOT / cloud / "vms.csv", None)


def _fetched_at_s(cached: Path) -> float:
    """When SkyPilot fetched a catalog. After a fetch that failed it touches the catalog, too, but not its digest."""
    digest = _SKYPILOT_CATALOGS.expanduser() / ".meta" / cached.parent.name / f"{cached.name}.md5"
    return (digest if digest.is_file() else cached).stat().st_mtime


class _Row(NamedTuple):
    """One catalog row, typed; prices are None where the field is empty. (A tuple: there are many.)"""

    instance_type: str
    gpu_name: str
    gpu_count: int
    vcpus: float | None
    memory_gib: float | None
    price: float | None
    spot_price: float | None
    region: str
    zone: str | None


def _read_catalog(cloud: str, path: Path, machines: str) -> Iterator[Offer]:
    rows = _read_rows(path)
    for row in _gcp_machines(list(rows)) if cloud == "gcp" else rows:
        if machines == "all" or bool(row.gpu_name) == (machines == "gpu"):
            yield from _offers_of(cloud, row)


def _read_rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            at = {name: index for index, name in enumerate(header)}
            for name in ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"):
                if name not in at:
                    raise CatalogError(f"{path} has no column {name}; is it a SkyPilot price catalog of schema v8?")
            optional = [at.get(name) for name in ("vCPUs", "MemoryGiB", "AvailabilityZone")]
            for line in lines:
                if len(line) == len(header):  # a shorter line is torn off, and says nothing
                    yield _row(line, at, optional)
    except OSError as exc:
        raise CatalogError(
            f"{path} cannot be read: {exc.strerror}. Refresh SkyPilot's catalogs, or remove it."
        ) from exc
    except (ValueError, csv.Error) as exc:
        raise CatalogError(
            f"{path} holds a value that is not a number: {exc}. Remove the file to use the snapshot."
        ) from exc


def _row(line: list[str], at: dict[str, int], optional: list[int | None]) -> _Row:
    vcpus, memory, zone = (line[index] if index is not None else "" for index in optional)
    return _Row(
        instance_type=line[at["InstanceType"]],
        gpu_name=line[at["AcceleratorName"]],
        gpu_count=int(float(line[at["AcceleratorCount"]] or 0)),
        vcpus=_number(vcpus),
        memory_gib=_number(memory),
        price=_number(line[at["Price"]]),
        spot_price=_number(line[at["SpotPrice"]]),
        region=line[at["Region"]],
        zone=zone or None,
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _gcp_machines(rows: Sequence[_Row]) -> Iterator[_Row]:
    """Join GPU rows (no InstanceType) with the hosts of the same zone; a zone without the host sells none."""
    hosts = {(row.zone, row.instance_type): row for row in rows if row.instance_type}
    for row in rows:
        if row.instance_type:
            if not row.gpu_name and not row.instance_type.startswith(_GCP_ONLY_WITH_GPU):
                yield row
            continue
        for name in _GCP_HOSTS.get((row.gpu_name, row.gpu_count), ()):
            host = hosts.get((row.zone, name))
            if host is not None:
                yield _Row(
                    instance_type=name,
                    gpu_name=row.gpu_name,
                    gpu_count=row.gpu_count,
                    vcpus=host.vcpus,
                    memory_gib=host.memory_gib,
                    price=_sum(host.price, row.price),
                    spot_price=_sum(host.spot_price, row.spot_price),
                    region=row.region,
                    zone=row.zone,
                )


def _sum(left: float | None, right: float | None) -> float | None:
    """A machine's price, known only if both parts are; rounded where the float sum adds digits no price list has."""
    return None if left is None or right is None else round(left + right, 6)


def _offers_of(cloud: str, row: _Row) -> Iterator[Offer]:
    spot_price, note = row.spot_price, ""
    if spot_price is None:
        note = "the catalog lists no spot price"
    elif spot_price == row.price and cloud in _EQUAL_MEANS_NO_SPOT:
        spot_price, note = None, _EQUAL_MEANS_NO_SPOT[cloud]
    gpu_count = _GPU_COUNT_FIXES.get((cloud, row.instance_type), row.gpu_count)
    counted = "" if gpu_count == row.gpu_count else f"the catalog says {row.gpu_count} GPUs, the cloud {gpu_count}"
    for pricing, price, why in (
        (Pricing.ON_DEMAND, row.price, "" if row.price is not None else "the catalog lists no price"),
        (Pricing.SPOT, spot_price, note),
    ):
        yield Offer(
            infra=cloud,
            region=row.region,
            zone=row.zone,
            instance_type=row.instance_type,
            pricing=pricing,
            price_per_hour_usd=price,
            gpu_name=row.gpu_name or None,
            gpu_count=gpu_count,
            vcpus=row.vcpus,
            memory_gib=row.memory_gib,
            note="; ".join(filter(None, (why, counted))),
        )
