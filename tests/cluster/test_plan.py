"""The plan as a value: it survives JSON, and a foreign one is refused in words."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.examples import example_names, example_text
from alpaca_jobs.spec_io import parse_job
from cluster.errors import PlanError
from cluster.launch.planner import offers_for, plan_launch, side_offers_for
from cluster.plan import LaunchPlan, Placement, Pricing

PLACE = Placement("aws", "us-east-1", "use1-az6", "p4de.24xlarge", Pricing.SPOT, 8.65, 2, "A100-80GB:8")


def plan_of(name: str) -> LaunchPlan:
    job = parse_job(example_text(name))
    offers = offers_for(job)
    return plan_launch(
        job,
        run_id=f"{job.name}-bcdfg",
        offers=offers,
        side_offers=side_offers_for(job, offers),
        folder=Path("/work/here"),
    )


@pytest.mark.parametrize("name", example_names())
def test_plan_of_every_example_survives_json(name: str) -> None:
    plan = plan_of(name)
    assert LaunchPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plan_and_placement_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PLACE.region = "us-west-2"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan_of("demo").run_id = "x"  # type: ignore[misc]


def test_placement_says_where_and_for_how_much() -> None:
    assert str(PLACE) == "2 x p4de.24xlarge (spot) in aws/use1-az6, 8.65 USD/h each"
    assert (PLACE.name, PLACE.job_price_per_hour_usd) == ("aws/us-east-1", 17.3)
    unknown = replace(PLACE, price_per_hour_usd=None, num_nodes=1)
    assert str(unknown) == "p4de.24xlarge (spot) in aws/use1-az6, price unknown"
    assert unknown.job_price_per_hour_usd is None


def test_plan_knows_its_nodes() -> None:
    plan = replace(plan_of("alpaca-7b"), candidates=(PLACE,), world_size=16)
    assert (plan.num_nodes, plan.is_local) == (2, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": [{"infra": "aws"}]}, "not a placement of this version"),
        ({"candidates": ["local/a"]}, "a placement is a mapping, not 'local/a'"),
        ({"candidates": [{**PLACE.to_json(), "pricing": "free"}]}, "'free' is not a valid Pricing"),
        ({"job": {"name": "demo"}}, "The job in plan.json is not one of this version: plan.json: data is missing"),
        ({"notes": None}, "plan.json is not a plan of this version"),
    ],
)
def test_foreign_plan_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        LaunchPlan.from_json({**plan_of("demo").to_json(), **change})


def test_missing_field_is_named() -> None:
    value = plan_of("demo").to_json()
    del value["store_uri"]
    with pytest.raises(PlanError, match=r"not a plan of this version: 'store_uri'\. Plan again"):
        LaunchPlan.from_json(value)
