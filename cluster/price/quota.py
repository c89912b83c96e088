"""Whether an account may start a machine: AWS counts the vCPUs of a family of machines, spot and on demand apart. Pure.

Source: docs.aws.amazon.com/AWSEC2/latest/UserGuide, "Amazon EC2 instance type quotas" and "Spot Instance quotas":
families, default values of a new account, and the codes under which Service Quotas has them (2026-11). A quota counts
all running machines of its kind in a region together; what runs already is not looked at here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from cluster.plan import Pricing
from cluster.price.offers import Offer


@dataclass(frozen=True)
class _Family:
    """Machines that share a quota: (code on demand, code spot), and vCPUs that a new account gets of each."""

    on_demand: str
    spot: str
    new_account: tuple[int, int]


_STANDARD = _Family("L-1216C47A", "L-34B43A08", (5, 5))
_FAMILIES: Final[dict[str, _Family]] = {
    **dict.fromkeys(["a", "c", "d", "h", "i", "im", "is", "m", "r", "t", "z"], _STANDARD),
    **dict.fromkeys(["g", "gr", "vt"], _Family("L-DB2E81BA", "L-3819A6DF", (0, 0))),
    "p": _Family("L-417A185B", "L-7212CCBC", (0, 0)),
    "inf": _Family("L-1945791B", "L-B5D1601B", (0, 0)),
    "trn": _Family("L-2C3B7624", "L-6B0D517C", (0, 0)),
    "f": _Family("L-74FC7D96", "L-88CF9481", (0, 0)),
    "x": _Family("L-7295265B", "L-E3A00192", (0, 0)),
}
_P5_SPOT: Final = "L-C4BD4855"  # P5 on spot has one of its own; on demand it shares that of P
GPU_QUOTAS: Final[dict[str, str]] = {
    "P on spot (A100, V100)": _FAMILIES["p"].spot,
    "P5 on spot (H100, H200)": _P5_SPOT,
    "P on demand (A100, H100, H200, V100)": _FAMILIES["p"].on_demand,
    "G on spot (L4, L40S, A10G, T4)": _FAMILIES["g"].spot,
    "G on demand (L4, L40S, A10G, T4)": _FAMILIES["g"].on_demand,
}
"""Machines with GPUs in words -> the code of their quota."""
_TYPE: Final = re.compile(r"([a-z]+)(\d+)")


@dataclass(frozen=True)
class Quota:
    """What an account may have at a time.

    Attributes:
        vcpus: None if nobody knows.
        needed: vCPUs of the machines that are asked about; None where the price list does not say.
        source: account (asked), new account (what AWS gives to one, labelled so), unknown.
        why: what kept the account from being asked; empty if it was.
    """

    vcpus: float | None
    needed: float | None
    source: Literal["account", "new account", "unknown"]
    why: str = ""

    @property
    def allows(self) -> bool | None:
        """Whether the machines fit by themselves; None if that is not known."""
        return None if self.vcpus is None or self.needed is None else self.needed <= self.vcpus

    def __str__(self) -> str:
        if self.vcpus is None:
            return "unknown"
        held = f"{self.vcpus:.0f} vCPUs" + (" in a new account" if self.source == "new account" else "")
        verdict = {True: "yes", False: "no", None: "?"}[self.allows]
        return f"{verdict}: {held}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "allows": self.allows}


def quota_code(offer: Offer) -> str | None:
    """Under which code AWS's Service Quotas has the limit of an offer; None for other clouds and unknown families."""
    family = _family(offer)
    if family is None:
        return None
    if offer.pricing is Pricing.SPOT:
        return _P5_SPOT if offer.instance_type.startswith("p5") else family.spot
    return family.on_demand


def quota_by_default(offer: Offer, *, num_nodes: int = 1, why: str = "") -> Quota:
    """What a new account has; unknown for other clouds."""
    needed, family = _needed(offer, num_nodes), _family(offer)
    if family is None:
        return Quota(None, needed, "unknown", why or f"quotas of {offer.infra} are not read here")
    return Quota(family.new_account[offer.pricing is Pricing.SPOT], needed, "new account", why)


def quota_of(offer: Offer, vcpus: float, *, num_nodes: int = 1) -> Quota:
    """What the account itself said."""
    return Quota(vcpus, _needed(offer, num_nodes), "account")


def _needed(offer: Offer, num_nodes: int) -> float | None:
    return None if offer.vcpus is None else offer.vcpus * num_nodes


def _family(offer: Offer) -> _Family | None:
    if offer.infra != "aws" or (match := _TYPE.match(offer.instance_type)) is None:
        return None
    return _FAMILIES.get(match[1])
