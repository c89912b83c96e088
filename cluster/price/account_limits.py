"""What an account of AWS may have: regions that are switched on, vCPUs of each kind of machine. Pure; answers come in.

Opt-in regions are off in a new account. Where the account was not asked, they are tried after all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cluster.price.offers import Offer
from cluster.price.quota import quota_code

# Source: docs.aws.amazon.com/accounts/latest/reference/manage-acct-regions.html, "Regions that are enabled by default":
# those introduced before March 20, 2019 (2026-11).
AWS_ON_BY_DEFAULT: Final = frozenset(
    {
        "us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1",
        "eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3",
        "ap-northeast-1", "ap-northeast-2", "ap-northeast-3", "ap-south-1", "ap-southeast-1", "ap-southeast-2",
    }
)  # fmt: skip

QuotaKey = tuple[str, str]
"""(code in AWS's Service Quotas, region)."""


@dataclass(frozen=True)
class AccountLimits:
    """What an account answered; what it was not asked is not limited.

    Attributes:
        enabled: AWS's regions that are switched on; None: not asked.
        vcpus: of running machines together, by quota.
    """

    enabled: frozenset[str] | None = None
    vcpus: Mapping[QuotaKey, float] = field(default_factory=dict)

    def has_region(self, offer: Offer) -> bool:
        """Whether machines can be started in the offer's region at all."""
        return offer.infra != "aws" or self.enabled is None or offer.region in self.enabled

    def has_quota(self, offer: Offer, *, num_nodes: int) -> bool:
        """Whether so many of them fit into the quota by themselves."""
        key = quota_key(offer)
        held = None if key is None else self.vcpus.get(key)
        return held is None or offer.vcpus is None or offer.vcpus * num_nodes <= held

    def within(self, offers: Iterable[Offer], *, num_nodes: int) -> list[Offer]:
        """The offers that the account can have."""
        return [one for one in offers if self.has_region(one) and self.has_quota(one, num_nodes=num_nodes)]

    def trusted(self, named: Iterable[str] | None) -> frozenset[str]:
        """Regions that are tried in order of price, opt-in or not: the account has them, or the job names them."""
        return (self.enabled or frozenset()) | frozenset(named or ())


NOT_ASKED: Final = AccountLimits()


def is_doubtful(offer: Offer, trusted: frozenset[str] = frozenset()) -> bool:
    """Whether an offer is in a region that most accounts have not switched on."""
    return offer.infra == "aws" and offer.region not in AWS_ON_BY_DEFAULT and offer.region not in trusted


def quota_key(offer: Offer) -> QuotaKey | None:
    """Which quota counts an offer's machines; None where none is known."""
    code = quota_code(offer)
    return None if code is None else (code, offer.region)
