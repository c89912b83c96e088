"""Leaving out what an account may not have, and saying so: as a note of the plan, or as a refusal. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from alpaca_jobs.spec import JobSpec
from cluster.errors import PlanError
from cluster.plan import Pricing
from cluster.price.account_limits import AccountLimits, quota_key
from cluster.price.gpu_choice import join
from cluster.price.offers import Offer

_SWITCH_ON = "https://console.aws.amazon.com/billing/home#/account"


def within_account(job: JobSpec, offers: list[Offer], limits: AccountLimits, notes: list[str]) -> list[Offer]:
    """Keep the offers that the account may have, and note those of the job that it may not.

    Raises:
        PlanError: it has none of the regions that the job allows.
    """
    regions, num_nodes = job.compute.regions, job.compute.num_nodes
    here = [one for one in offers if regions is None or one.region in regions]
    off = sorted({one.region for one in here if not limits.has_region(one)})
    if off and all(one.region in off for one in here):
        raise PlanError(
            f"compute.regions allows {join(off)}, which this AWS account has not switched on. Switch "
            f"{'it' if len(off) == 1 else 'one'} on ({_SWITCH_ON}), or allow other regions."
        )
    if off:
        notes.append(f"Left out, because this AWS account has not switched them on: {join(off)}.")
    short = [one for one in here if limits.has_region(one) and not limits.has_quota(one, num_nodes=num_nodes)]
    wanted = [one for one in short if _is_asked_for(job, one)]
    if wanted:
        notes.append(f"Left out, because this AWS account has no quota for them: {join(_kinds(wanted, limits))}.")
    return limits.within(offers, num_nodes=num_nodes)


def no_quota_left(job: JobSpec, refused: Iterable[Offer], limits: AccountLimits) -> PlanError:
    """The refusal where quotas leave no place: which quota, how much is wanted, what to type.

    Args:
        refused: the places that were planned before the account was asked, best first.
    """
    offers = list(refused)
    first = offers[0]
    key = quota_key(first)
    assert key is not None
    needed = (first.vcpus or 0) * job.compute.num_nodes
    return PlanError(
        f"This AWS account has no quota for any place that the job may go to: {join(_kinds(offers, limits))}; "
        f"{job.compute.num_nodes} x {first.instance_type} need {needed:.0f} vCPUs. Ask AWS for more (hours to "
        f"days): aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {key[0]} "
        f"--region {key[1]} --desired-value {needed:.0f}; or take other machines (compute.gpus, compute.spot), or "
        "another cloud."
    )


def _is_asked_for(job: JobSpec, offer: Offer) -> bool:
    wanted, spot = job.compute.gpu_request, job.compute.spot_policy
    if offer.pricing is (Pricing.ON_DEMAND if spot is not None and spot.on_demand == "never" else None):
        return False
    if spot is None and offer.pricing is Pricing.SPOT:
        return False
    if wanted is None:
        return True
    return offer.gpus is not None and offer.gpus.lower() == f"{wanted.name}:{wanted.count}".lower()


def _kinds(offers: Iterable[Offer], limits: AccountLimits) -> list[str]:
    """Each region once for each way of paying, with the vCPUs that it has: aws/us-east-1 spot (0 vCPUs)."""
    found: dict[str, None] = {}
    for one in offers:
        key = quota_key(one)
        if key is not None and key in limits.vcpus:
            found[f"{one.infra}/{one.region} {one.pricing.value} ({limits.vcpus[key]:.0f} vCPUs)"] = None
    return list(found)
