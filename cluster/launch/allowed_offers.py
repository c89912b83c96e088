"""Which offers a job's own words allow, its clouds, regions and way of paying, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from alpaca_jobs.spec import JobSpec
from cluster.errors import PlanError
from cluster.plan import Pricing
from cluster.price.account_limits import AccountLimits, is_doubtful
from cluster.price.gpu_choice import join, nearest_region
from cluster.price.offers import CLOUDS, Offer


def in_infra(job: JobSpec, offers: Iterable[Offer]) -> list[Offer]:
    """Keep the offers of the clouds the job names. Raises PlanError: there are none."""
    found = [offer for offer in offers if offer.infra in job.compute.infra]
    if not found:
        raise PlanError(f"There are no prices for {join(job.compute.infra)}. Known: local, {join(CLOUDS)}.")
    return found


def check_region_names(job: JobSpec, offers: Iterable[Offer]) -> None:
    """Refuse a region that no price list knows, by PlanError: a typo would otherwise read as "sold out"."""
    names = _region_names(offers)
    for region in job.compute.regions or ():
        if region not in names:
            raise PlanError(
                f"compute.regions names {region}, which is no region of {join(job.compute.infra)}. "
                f"{nearest_region(region, names)}"
            )


def in_regions(job: JobSpec, offers: list[Offer], notes: list[str]) -> list[Offer]:
    """Keep the regions the job allows; note those that do not sell what is wanted. Raises PlanError: none of them."""
    selling = _region_names(offers)
    absent = [region for region in job.compute.regions or () if region not in selling]
    if absent:
        notes.append(f"Left out, because the price list has no such machine there: {join(absent)}.")
    allowed = [offer for offer in offers if is_in_regions(job, offer)]
    if not allowed:
        raise PlanError(
            f"compute.regions allows {join(job.compute.regions or ())}, and none of them sells what the job asks for. "
            f"These do: {join(selling)}."
        )
    return allowed


def _region_names(offers: Iterable[Offer]) -> list[str]:
    return sorted({offer.region for offer in offers})


def is_in_regions(job: JobSpec, offer: Offer) -> bool:
    """Whether the job allows the offer's region."""
    return job.compute.regions is None or offer.region in job.compute.regions


def with_pricing(job: JobSpec, offers: list[Offer], limits: AccountLimits) -> list[Offer]:
    """Keep offers paid for as the job allows and with a price; put them in order. Raises PlanError: there are none."""
    if job.compute.is_local or job.compute.is_own:
        return offers
    kept = sorted(payable_offers(job, offers), key=partial(order_of, limits.trusted(job.compute.regions)))
    if kept:
        return kept
    why = sorted({offer.note for offer in offers if offer.note})
    raise PlanError(
        f"compute.spot allows only {'spot' if job.compute.spot_policy else 'on-demand'} machines, and none of those "
        f"that fit has such a price ({join(why) or 'none is listed'}). "
        "Set spot: false, or spot: {on_demand: last-resort}, or allow other clouds."
    )


def payable_offers(job: JobSpec, offers: Iterable[Offer]) -> list[Offer]:
    """Keep offers with a price, paid for as the job allows."""
    policy = job.compute.spot_policy
    allowed = {Pricing.ON_DEMAND} if policy is None else {Pricing.SPOT}
    if policy is not None and policy.on_demand != "never":
        allowed.add(Pricing.ON_DEMAND)
    return [offer for offer in offers if offer.pricing in allowed and offer.price_per_hour_usd is not None]


def order_of(trusted: frozenset[str], offer: Offer) -> tuple[bool, bool, float, str, str, str, str]:
    """Spot before on demand (where a job allows both), regions that most accounts have not switched on after others,
    then price, then names; num_nodes is the same for all.
    """
    price, place = offer.price_per_hour_usd, (offer.infra, offer.region, offer.zone or "", offer.instance_type)
    assert price is not None
    return (offer.pricing is Pricing.ON_DEMAND, is_doubtful(offer, trusted), price, *place)
