"""What an account may have: opt-in regions come last or not at all, machines without quota are left out and named."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, parse_job
from cluster.errors import PlanError
from cluster.launch.planner import plan_launch, side_offers_for
from cluster.plan import LaunchPlan, Pricing
from cluster.price.account_limits import AWS_ON_BY_DEFAULT, NOT_ASKED, AccountLimits, is_doubtful
from cluster.price.account_words import no_quota_left
from cluster.price.offers import SNAPSHOT, Offer, PriceList, load_offers
from cluster.price.side_machines import side_machines

G_SPOT = "L-3819A6DF"


def job(**changes: Any) -> JobSpec:
    changed = {"compute.infra": ["aws"], "compute.gpus": "A10G:4", "train.method": "lora", "train.micro_batch_size": 4}
    return change_job(
        parse_job(example_text("alpaca-7b")), changed | {key.replace("__", "."): one for key, one in changes.items()}
    )


def plan(spec: JobSpec, limits: AccountLimits = NOT_ASKED, offers: PriceList | None = None) -> LaunchPlan:
    found = offers or load_offers(["aws"], catalogs=SNAPSHOT)
    return plan_launch(
        spec, run_id="a-bcdfg", offers=found, side_offers=side_offers_for(spec, found), limits=limits, code_version="0"
    )


def offer(region: str, price: float, **more: Any) -> Offer:
    return Offer("aws", region, None, "g5.12xlarge", Pricing.SPOT, price, "A10G", 4, 48.0, 192.0, **more)


def test_regions_that_accounts_have_to_switch_on_come_after_the_others() -> None:
    found = plan(job())
    places = [place.region in AWS_ON_BY_DEFAULT for place in found.candidates]
    assert places == sorted(places, reverse=True)
    assert places[0]
    assert not places[-1]
    assert found.generation[0].region in AWS_ON_BY_DEFAULT
    prices = PriceList((offer("eu-south-1", 1.0), offer("us-east-1", 5.0)))
    assert [place.region for place in plan(job(), offers=prices).candidates] == ["us-east-1", "eu-south-1"]


def test_a_cpu_demo_on_aws_begins_where_every_account_is() -> None:
    spec = change_job(
        parse_job(example_text("demo")), {"compute.infra": ["aws"], "compute.regions": None, "store": "auto"}
    )  # fmt: skip
    assert plan(spec).candidates[0].region in AWS_ON_BY_DEFAULT


def test_a_region_that_the_job_names_or_the_account_has_keeps_its_price() -> None:
    prices = PriceList((offer("eu-south-1", 1.0), offer("us-east-1", 5.0)))
    named = plan(job(compute__regions=["us-east-1", "eu-south-1"]), offers=prices)
    assert named.candidates[0].region == "eu-south-1"
    enabled = AccountLimits(frozenset({"us-east-1", "eu-south-1"}))
    assert plan(job(), enabled, prices).candidates[0].region == "eu-south-1"


def test_a_region_that_is_off_is_left_out_and_named() -> None:
    prices = PriceList((offer("eu-south-1", 1.0), offer("us-east-1", 5.0)))
    off = AccountLimits(frozenset({"us-east-1", "us-west-2"}))
    found = plan(job(), off, prices)
    assert [place.region for place in found.candidates] == ["us-east-1"]
    assert "Left out, because this AWS account has not switched them on: eu-south-1." in found.notes
    assert {place.region for place in found.generation} <= {"us-east-1", "us-west-2"}
    with pytest.raises(
        PlanError, match=r"^compute.regions allows eu-south-1, which this AWS account has not switched on"
    ):
        plan(job(compute__regions=["eu-south-1"]), off, prices)


def test_a_place_without_quota_is_left_out_and_named() -> None:
    prices = PriceList((offer("us-east-1", 1.0), offer("us-west-2", 5.0)))
    limits = AccountLimits(vcpus={(G_SPOT, "us-east-1"): 0.0, (G_SPOT, "us-west-2"): 64.0})
    found = plan(job(), limits, prices)
    assert [place.region for place in found.candidates] == ["us-west-2"]
    assert "Left out, because this AWS account has no quota for them: aws/us-east-1 spot (0 vCPUs)." in found.notes
    assert limits.within(prices, num_nodes=2) == [], "two machines of 48 vCPUs are more than 64"


def test_the_refusal_says_what_was_found_what_is_needed_and_what_to_type() -> None:
    limits = AccountLimits(vcpus={(G_SPOT, "us-east-1"): 8.0})
    assert str(no_quota_left(job(), [offer("us-east-1", 1.0)], limits)) == (
        "This AWS account has no quota for any place that the job may go to: aws/us-east-1 spot (8 vCPUs); 1 x "
        "g5.12xlarge need 48 vCPUs. Ask AWS for more (hours to days): aws service-quotas "
        "request-service-quota-increase --service-code ec2 --quota-code L-3819A6DF --region us-east-1 --desired-value "
        "48; or take other machines (compute.gpus, compute.spot), or another cloud."
    )


def test_controllers_are_priced_where_every_account_is() -> None:
    found = side_machines(job(), load_offers(["aws"], catalogs=SNAPSHOT, machines="cpu"))
    assert found.controller is not None
    assert found.controller.region in AWS_ON_BY_DEFAULT


def test_only_aws_has_regions_that_are_switched_on() -> None:
    assert is_doubtful(offer("me-south-1", 1.0))
    assert not is_doubtful(offer("us-east-1", 1.0))
    assert not is_doubtful(Offer("gcp", "me-west1", None, "g2-standard-4", Pricing.SPOT, 1.0))
