"""What saving costs in an estimate: training that waits for it, and state that goes from one region to another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, parse_job
from cluster.course import Course
from cluster.launch.planner import plan_launch
from cluster.plan import LaunchPlan
from cluster.price.assumptions import Assumptions
from cluster.price.courses import training_course
from cluster.price.estimate import DRAWS, CandidateEstimate, estimate_candidates
from cluster.price.estimate_factors import WAITING, Factor, factors
from cluster.price.offers import SNAPSHOT, load_offers
from cluster.price.simulation import Played, play
from cluster.price.workload import Workload, workload_of

SURE = Assumptions(mfu_spread=0.0)


def job(**changes: Any) -> JobSpec:
    """LLaMA-7B, of which a save is 80.9 GB."""
    return change_job(parse_job(example_text("alpaca-7b")), {key.replace("__", "."): v for key, v in changes.items()})


def plan_for(spec: JobSpec) -> LaunchPlan:
    return plan_launch(spec, run_id="alpaca-7b-bcdfg", offers=load_offers(spec.compute.infra, catalogs=SNAPSHOT))


def first(spec: JobSpec, work: Workload | None = None) -> CandidateEstimate:
    return estimate_candidates(plan_for(spec), work or workload_of(spec), SURE)[0]


def course_of(spec: JobSpec, assumed: Assumptions = SURE) -> Course:
    course = training_course(plan_for(spec).candidates[0], spec, workload_of(spec), assumed)
    assert course is not None
    return course


def factors_of(spec: JobSpec) -> dict[str, Factor]:
    return {one.name: one for one in factors(plan_for(spec), workload_of(spec), SURE)}


def test_fixed_interval_is_counted_in_steps() -> None:
    course = course_of(job(checkpoints__interval_steps=400))
    assert course.save_interval_s == pytest.approx(400 * course.work_s / 1221)
    assert course.work_s == course_of(job()).work_s


def test_training_waits_for_saves_that_are_wanted_more_often_than_they_can_be_stored() -> None:
    save_s, often = 12 * 6_738_415_616 / 500e6, {"checkpoints__interval_steps": 50}
    waiting, calm = course_of(job(**often)), course_of(job())
    assert waiting.work_s == pytest.approx(24 * save_s)  # 1221 // 50 saves
    assert waiting.work_s > 4 * calm.work_s
    assert waiting.save_interval_s == pytest.approx(save_s)
    skipping = course_of(job(**often, checkpoints__when_busy="skip"))
    assert (skipping.work_s, skipping.save_interval_s) == (calm.work_s, waiting.save_interval_s)
    told = factors_of(job(**often))
    assert told[WAITING].value == pytest.approx((waiting.work_s - calm.work_s) / 3600)
    assert "interval_steps is 50, 33 s of training, but a save of 80.9 GB takes 162 s" in told[WAITING].words
    assert told["training time"].value == pytest.approx(calm.work_s / 3600)
    assert WAITING not in factors_of(job())


def test_nothing_is_saved_more_often_than_a_save_takes() -> None:
    slow = course_of(job(), replace(SURE, transfer_bytes_per_s=100e6))
    assert slow.save_interval_s == pytest.approx(12 * 6_738_415_616 / 100e6)  # 13 minutes, not 10
    assert slow.work_s == course_of(job()).work_s


def test_automatic_saves_from_another_region_are_as_far_apart_as_their_bill_makes_best() -> None:
    assert course_of(job()).away_interval_s == 3600
    adapters = course_of(job(train__method="lora"))
    assert adapters.away_interval_s == adapters.save_interval_s, "240 MB are not worth a thought"
    assert course_of(job(checkpoints__interval_steps=400)).away_interval_s is None
    assert "60 min apart" in factors_of(job())["egress"].words


def games_of(found: CandidateEstimate) -> tuple[Played, ...]:
    assert found.course is not None
    return play(found.course, draws=DRAWS, seed=0)


def test_every_save_from_another_region_is_paid_for_where_the_plan_has_one() -> None:
    """A day on spot machines: what is sent is many times what is read."""
    found = first(job(train__epochs=300, checkpoints__interval_steps=400))
    read = [game.losses_away for game in games_of(found)]
    sent = [game.saves_away for game in games_of(found)]
    assert sum(sent) > 5 * sum(read)
    moved_gb = (sum(read) + sum(sent)) / DRAWS * 12 * 6.738415616
    assert found.parts_usd["state between regions"] == pytest.approx(moved_gb * SURE.egress_usd_per_gb)
    alone = first(job(train__epochs=300, compute__infra=["aws"], compute__regions=["us-east-1"]))
    assert alone.preemptions > 1
    assert alone.parts_usd["state between regions"] == 0.0


def test_adapters_beside_a_base_model_in_a_store_read_it_again_in_every_region() -> None:
    adapters = {"train__method": "lora"}
    hub, store = job(**adapters), job(**adapters, train__model="s3://bucket/runs/first-bcdfg")
    work = workload_of(hub, base_bytes=13 * 10**9)
    usd = [first(one, work) for one in (hub, store)]
    parts = [one.parts_usd["state between regions"] or 0.0 for one in usd]
    away = [game.losses_away for game in games_of(usd[0])]
    assert parts[1] - parts[0] == pytest.approx(sum(away) / len(away) * 13 * SURE.egress_usd_per_gb)
