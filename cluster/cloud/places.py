"""The plan's places in SkyPilot's words, and back. Pure.

A cloud's place names region and machine. On machines of the user's own (k8s, slurm, ssh) SkyPilot is told what is
needed instead, and the region is the cluster's name, or ANYWHERE.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from alpaca_jobs.spec_compute import OWN_INFRA
from cluster.plan import Placement, Pricing
from cluster.price.own_machines import ANYWHERE

_NAMES: Final = {"k8s": "kubernetes"}  # SkyPilot's own name, where ours is another


def task_places(candidates: Iterable[Placement]) -> list[Placement]:
    """The plan's places as SkyPilot can be told them, in order: one for each region, because zones are its own choice.

    The price stays that of the cheapest zone, which SkyPilot tries first as well.
    """
    seen: dict[tuple[str, ...], Placement] = {}
    for place in candidates:
        seen.setdefault((place.infra, place.region, place.instance_type, place.pricing), replace(place, zone=None))
    return list(seen.values())


def render_place(place: Placement) -> str:
    """A place as an entry of a task's `ordered:` list."""
    if place.infra in OWN_INFRA:
        where = place.infra if place.region == ANYWHERE else place.name
        what = f"accelerators: {place.gpus}" if place.gpus else f"cpus: {place.instance_type.partition(' ')[0]}+"
        return f"{{infra: {where}, {what}}}"
    gpus = f", accelerators: {place.gpus}" if place.gpus else ""
    spot = "true" if place.pricing is Pricing.SPOT else "false"
    return f"{{infra: {place.name}, instance_type: {place.instance_type}{gpus}, use_spot: {spot}}}"


def is_there(place: Placement, *, cloud: str, region: str | None) -> bool:
    """Whether SkyPilot's cloud and region are a place's."""
    if cloud.lower() != _NAMES.get(place.infra, place.infra):
        return False
    named = f"ssh-{place.region}" if place.infra == "ssh" else place.region
    return place.region == ANYWHERE or region == named
