"""Asking AWS's Service Quotas what this account may have of a kind of machine. One question a quota and region."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from cluster.cloud.aws_account import AwsAccount
from cluster.errors import CloudError
from cluster.price.offers import Offer
from cluster.price.quota import Quota, quota_by_default, quota_code, quota_of


def quotas_of(offers: Iterable[Offer], account: AwsAccount, *, num_nodes: int = 1) -> dict[Offer, Quota]:
    """What the account may have of each offer; what a new account has, labelled so, where it cannot be asked.

    Never raises: a quota that is not known is said, and `why` says what AWS answered.
    """
    asked: dict[tuple[str, str], float | CloudError] = {}
    found = {}
    refusal: CloudError | None = None  # who is not signed in is not asked a hundred times
    for offer in offers:
        code = quota_code(offer)
        if code is None:
            found[offer] = quota_by_default(offer, num_nodes=num_nodes)
            continue
        if (code, offer.region) not in asked:
            asked[code, offer.region] = refusal or _ask(account, code, offer.region)
        answer = asked[code, offer.region]
        if isinstance(answer, CloudError):
            refusal = answer if answer.code != "NoSuchResourceException" else refusal
            found[offer] = quota_by_default(offer, num_nodes=num_nodes, why=str(answer))
        else:
            found[offer] = quota_of(offer, answer, num_nodes=num_nodes)
    return found


def _ask(account: AwsAccount, code: str, region: str) -> float | CloudError:
    try:
        act = partial(account.client("service-quotas", region).get_service_quota, ServiceCode="ec2", QuotaCode=code)
        return float(account.call(f"reading quota {code} in {region}", act)["Quota"]["Value"])
    except CloudError as exc:
        return exc
