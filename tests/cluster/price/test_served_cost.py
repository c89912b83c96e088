"""A teacher of the run's own: planned on a machine with its GPUs, priced by the hour, beside what an API would ask."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.known_models import parameters_by_name
from alpaca_jobs.spec import DataSpec, JobSpec
from alpaca_jobs.spec_io import change_job, parse_job
from cluster.errors import PlanError
from cluster.launch.estimating import estimate_plan, gather_facts, plan_with
from cluster.launch.planner import offers_for, side_offers_for
from cluster.price.served_cost import START_S, served_speed
from cluster.price.side_machines import side_machines, writes_rows_apart
from cluster.price.teacher_cost import TeacherAssumptions, estimate_teacher

MODEL = "Qwen/Qwen2.5-7B-Instruct"


def job(gpus: str = "L4:1", **changes: Any) -> JobSpec:
    base = parse_job(example_text("alpaca-7b"))
    teacher = {"serve": MODEL, "server": {"gpus": gpus}}
    return change_job(base, {"data.teacher": teacher, "secrets": [], **changes})


def data(gpus: str | None = "A100:1", *, model: str = MODEL, **more: Any) -> DataSpec:
    return DataSpec.model_validate({"teacher": {"serve": model, "server": {"gpus": gpus}}, **more})


def test_throughput_is_what_is_in_flight_or_what_the_gpus_give_whichever_is_less() -> None:
    few = served_speed(data(concurrency=8), tokens_per_second_each=50.0)
    assert few.tokens_per_second == 16 * 50.0
    assert "raise data.concurrency" in few.words
    alone = served_speed(data(num_actors=1), tokens_per_second_each=5.0)
    assert alone.words.startswith("256 in flight"), "auto goes as far as answers come faster for it"
    assert "raise data.num_actors" in alone.words
    many = served_speed(data(concurrency=1000), tokens_per_second_each=50.0)
    assert many.tokens_per_second == pytest.approx(312e12 * 0.1 / (2 * 7_615_616_512))
    two = served_speed(data("A100:2", concurrency=1000), tokens_per_second_each=50.0)
    assert two.tokens_per_second == pytest.approx(2 * many.tokens_per_second)
    unknown = served_speed(data(model="a/b", concurrency=1000), tokens_per_second_each=50.0)
    assert unknown.tokens_per_second == 2000 * 50.0
    assert "not known" in unknown.words


def test_time_is_tokens_over_throughput_and_a_start_and_no_token_costs_a_dollar() -> None:
    found = estimate_teacher(data(concurrency=1000))
    assert found.served is not None
    assert found.seconds == pytest.approx(START_S + found.completion_tokens / found.served.tokens_per_second)
    assert found.cost_usd == 0.0
    measured = estimate_teacher(data(), TeacherAssumptions(rows_per_second=2.0))
    assert (measured.seconds, measured.served) == (26_000.0, None)


@pytest.mark.parametrize(
    ("name", "size"),
    [("a/Some-7B-Chat", 7e9), (MODEL, 7_615_616_512), ("a/b-0.5b", 0.5e9), ("a/c-350M", 0.35e9),
     ("meta-llama/Meta-Llama-3-8B", 8_030_261_248), ("a/Mixtral-8x7B", None), ("a/none", None)],
)  # fmt: skip
def test_a_size_is_known_or_read_off_the_name(name: str, size: float | None) -> None:
    assert parameters_by_name(name) == size


def test_rows_are_written_on_the_cheapest_machine_with_its_gpus_and_paid_by_the_hour() -> None:
    spec = job()
    offers = offers_for(spec)
    side = side_machines(spec, side_offers_for(spec, offers))
    assert side.generation is not None
    assert side.controller is not None
    assert (side.generation.gpus, side.controller.gpus) == ("L4:1", None)
    facts = gather_facts(spec)
    plan = plan_with(spec, facts, offers)
    assert {place.gpus for place in plan.generation} == {"L4:1"}
    assert {place.gpus for place in plan.candidates} == {"A100-80GB:8"}
    found = estimate_plan(plan, facts, offers)
    parts = found.candidates[0].parts_usd
    assert facts.teacher is not None
    hours = facts.teacher.seconds / 3600
    assert parts["teacher"] == 0.0
    assert parts["generation machine"] is not None
    assert parts["generation machine"] > 0.8 * hours * (side.generation.price_per_hour_usd or 0.0)
    told = {one.name: one for one in found.factors}
    assert told["generation machine"].words.endswith("the cheapest with L4:1, for the teacher")
    assert told["instead, at an API"].value == pytest.approx(
        (facts.teacher.prompt_tokens * 0.15 + facts.teacher.completion_tokens * 0.60) / 1e6
    )
    assert told["teacher speed"].source.startswith("prior")


def test_a_job_that_trains_without_gpus_may_have_a_teacher_with_some() -> None:
    spec = job(**{"compute.gpus": None, "compute.workers": 2, "train.model": "tiny-llama"})
    assert writes_rows_apart(spec)
    plan = plan_with(spec, gather_facts(spec), offers_for(spec))
    assert {place.gpus for place in plan.generation} == {"L4:1"}
    assert {place.gpus for place in plan.candidates} == {None}


def test_gpus_that_nobody_sells_are_refused_with_the_nearest() -> None:
    spec = job("L4:3")
    with pytest.raises(
        PlanError, match=r"data\.teacher\.server\.gpus is L4:3, but L4 is sold by .* only with .*in a machine"
    ):
        side_offers_for(spec, offers_for(spec))
    with pytest.raises(PlanError, match="Did you mean"):
        side_offers_for(job("L44:1"), offers_for(spec))
    nowhere = job("L4:1", **{"compute.infra": ["gcp"], "compute.regions": ["us-central1"]})
    assert plan_with(nowhere, gather_facts(nowhere), offers_for(nowhere)).generation
