"""The price of a job before it runs: every factor moves the number the right way; what is unknown is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_jobs.config_shapes import size_by_config
from alpaca_jobs.examples import example_text
from alpaca_jobs.spec import DataSpec, JobSpec, TeacherSpec
from alpaca_jobs.spec_io import change_job, parse_job
from cluster.course import Course
from cluster.errors import PlanError
from cluster.hazard import PRIOR_PER_NODE_HOUR, Hazard, spot_hazard
from cluster.launch.planner import plan_launch
from cluster.plan import LaunchPlan, Pricing
from cluster.price.assumptions import Assumptions, MeasuredSpeed, MeasuredSteps
from cluster.price.courses import training_course
from cluster.price.estimate import CandidateEstimate, estimate_candidates
from cluster.price.estimate_factors import Factor, factors
from cluster.price.hardware import GPUS, peak_flops
from cluster.price.offers import SNAPSHOT, load_offers
from cluster.price.side_machines import SideMachines, side_machines
from cluster.price.teacher_cost import TeacherAssumptions, estimate_teacher
from cluster.price.throughput import Throughput, measured_mfu
from cluster.price.workload import Workload, workload_of

SURE = Assumptions(mfu_spread=0.0)


def job(**changes: Any) -> JobSpec:
    return change_job(
        parse_job(example_text("alpaca-7b")), {key.replace("__", "."): value for key, value in changes.items()}
    )


def plan_for(spec: JobSpec) -> LaunchPlan:
    return plan_launch(spec, run_id="alpaca-7b-bcdfg", offers=load_offers(spec.compute.infra, catalogs=SNAPSHOT))


def first(spec: JobSpec, assumed: Assumptions = SURE, **more: Any) -> CandidateEstimate:
    return estimate_candidates(plan_for(spec), workload_of(spec), assumed, **more)[0]


def without_gpus() -> JobSpec:
    """The demo on a cloud."""
    changes = {"store": "auto", "compute.infra": ["aws"], "compute.regions": None}
    return change_job(parse_job(example_text("demo")), changes)


def first_course(spec: JobSpec, assumed: Assumptions = SURE) -> Course:
    course = training_course(plan_for(spec).candidates[0], spec, workload_of(spec), assumed)
    assert course is not None
    return course


def test_alpaca_is_1221_steps_and_20_million_tokens() -> None:
    work = workload_of(job())
    assert work.steps == 1221  # ceil(52000 / 128) * 3
    assert work.tokens == pytest.approx(3 * 6.66e6, rel=0.001)
    assert work.num_parameters == 6_738_415_616


def test_max_steps_cuts_the_work() -> None:
    whole, part = workload_of(job()), workload_of(job(train__max_steps=407))
    assert part.steps == 407
    assert part.tokens == pytest.approx(whole.tokens / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__model": "a/b"}, "The size of a/b is not known here"),
        ({"data": {"from": "x.json"}}, "The rows of x.json are not counted"),
        ({"data": {"from": "x.json"}, "train__recipe": "vicuna"}, "The rows of x.json are not counted"),
    ],
)
def test_what_nobody_counted_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        workload_of(job(**changes))


def test_what_the_caller_counted_is_used() -> None:
    spec = job(data={"from": "x.json"}, train__model="a/b")
    work = workload_of(spec, num_rows=1000, tokens_per_row=500.0, num_parameters=10**9)
    assert work == Workload(10**9, 24, 3 * 500_000.0, "given", row_tokens=500.0)


def test_long_rows_are_cut_but_all_tokens_of_documents_are_trained_on() -> None:
    rows = job(data={"from": "x.json"}, train__epochs=1)
    assert workload_of(rows, num_rows=1000, tokens_per_row=5120.0).tokens == 512_000
    documents = job(data={"from": "x.json"}, train__epochs=1, train__recipe="pretrain")
    found = [workload_of(documents, num_rows=1000, tokens_per_row=tokens) for tokens in (5120.0, 51.2)]
    assert [(one.tokens, one.steps) for one in found] == [(5_120_000, 79), (51_200, 1)]  # 10,000 and 100 rows of 512
    assert [one.row_tokens for one in found] == [512, 512]


def test_seven_b_at_half_the_peak_is_eleven_minutes() -> None:
    """FACTS: 8.1e17 FLOPs; at 50 % of 8 A100 it is 11 minutes."""
    seconds = Throughput(8, 312e12, 0.5).seconds(num_parameters=6.74e9, tokens=3 * 6.66e6)
    assert seconds / 60 == pytest.approx(10.8, abs=0.1)
    assert measured_mfu(
        num_parameters=6.74e9, tokens=3 * 6.66e6, seconds=seconds, num_gpus=8, peak_flops=312e12
    ) == pytest.approx(0.5)


def test_hours_are_start_plus_work_when_nothing_is_lost() -> None:
    found = first(job(compute__spot=False))
    course = found.course
    assert course is not None
    assert found.hours is not None
    assert found.preemptions == 0
    whole_s = course.start_s + course.work_s + course.finish_s
    assert found.hours.p10 == found.hours.p90 == pytest.approx(whole_s / 3600)
    assert course.finish_s == pytest.approx((12 + 4) * 6_738_415_616 / 500e6)  # the last step is saved, too
    assert course.start_s == pytest.approx(300 + 2 * 6_738_415_616 / 500e6)
    assert course.restart_s == pytest.approx(300 + 12 * 6_738_415_616 / 500e6)


def test_dollars_are_hours_times_price_plus_storage() -> None:
    found = first(job(compute__spot=False))
    price = found.placement.price_per_hour_usd
    assert found.cost_usd is not None
    assert found.hours is not None
    assert found.course is not None
    assert price is not None
    storage = 2 * 80.86 * found.hours.p50 / 730 * 0.023
    saves = found.course.work_s / 600
    requests = (saves * 80.86e9 / 2**24 + found.hours.p50 * 3600 * 3) * 5e-6
    assert found.cost_usd.p50 == pytest.approx(found.hours.p50 * price + storage + requests, rel=1e-4)
    assert sum(usd or 0.0 for usd in found.parts_usd.values()) == pytest.approx(found.cost_usd.p50)


def test_lora_takes_two_thirds_of_the_time_and_saves_its_adapters_alone() -> None:
    """LLaMA-7B, rank 8 on q and v: 4,194,304 parameters are trained."""
    full, lora = first_course(job(compute__spot=False)), first_course(job(compute__spot=False, train__method="lora"))
    assert lora.work_s == pytest.approx(full.work_s * 4 / 6)
    assert lora.start_s == full.start_s  # the base model either way
    assert lora.restart_s == pytest.approx(300 + (2 * 6_738_415_616 + 12 * 4_194_304) / 500e6)
    assert lora.finish_s == pytest.approx((12 + 4) * 4_194_304 / 500e6)
    merged = first_course(job(compute__spot=False, train__method="lora", export={"merge": True}))
    assert merged.finish_s == pytest.approx((12 * 4_194_304 + 4 * 6_738_415_616) / 500e6)
    kept = next(one for one in _factors(job(train__method="lora")) if one.name == "checkpoints kept")
    assert kept.value == pytest.approx(2 * 12 * 4_194_304 / 1e9)


def test_computing_activations_again_costs_lora_relatively_more() -> None:
    changes = {"compute__spot": False, "train__gradient_checkpointing": True}
    full, lora = first_course(job(**changes)), first_course(job(**changes, train__method="lora"))
    assert lora.work_s == pytest.approx(full.work_s * 6 / 8)


def test_a_size_guessed_by_the_name_is_priced_and_said() -> None:
    flops = next(one for one in _factors(job(train__model="nobody/Some-7B-Chat")) if one.name == "training FLOPs")
    assert flops.words.startswith("6 x 7 B parameters x ")
    assert flops.source.endswith("; 7 B parameters are a guess by its name")


def _factors(spec: JobSpec) -> tuple[Factor, ...]:
    return factors(plan_for(spec), workload_of(spec), SURE)


def test_spot_is_preempted_and_on_demand_is_not() -> None:
    plan = plan_for(job(compute__spot={"on_demand": "last-resort"}))
    found = estimate_candidates(plan, workload_of(job()), replace(SURE, hazard=Hazard(1.0, "a bad day")))
    spot = [one for one in found if one.placement.pricing is Pricing.SPOT]
    demand = [one for one in found if one.placement.pricing is Pricing.ON_DEMAND]
    assert {one.preemptions for one in demand} == {0}
    assert {one.preemptions for one in spot} == {spot[0].preemptions}, "places that differ by price share their plays"
    assert spot[0].preemptions > 0
    assert spot[0].hours is not None
    assert spot[0].hours.p90 > spot[0].hours.p10


def test_estimate_is_the_same_every_time() -> None:
    assert first(job(), Assumptions()) == first(job(), Assumptions())


@pytest.mark.parametrize(
    "worse",
    [
        {"mfu": 0.2},
        {"boot_s": 3000.0},
        {"transfer_bytes_per_s": 5e6},
        {"write_usd": 1e-3},
        {"idle_writes_per_s": 3000.0},
        {"hazard": Hazard(2.0, "x")},
        {"egress_usd_per_gb": 5.0, "hazard": Hazard(2.0, "x")},
        {"storage_usd_per_gb_month": 50.0},
    ],
)
def test_every_worse_assumption_costs_more(worse: dict[str, Any]) -> None:
    calm, rough = first(job()), first(job(), replace(SURE, **worse))
    assert calm.cost_usd is not None
    assert rough.cost_usd is not None
    assert rough.cost_usd.p90 > calm.cost_usd.p90


def test_hazard_grows_with_the_number_of_machines() -> None:
    spec = job(compute__num_nodes=2)
    course = first_course(spec)
    assert course.losses_per_hour == pytest.approx(2 * PRIOR_PER_NODE_HOUR)


def test_gpu_without_a_known_peak_is_refused() -> None:
    spec = job(
        compute__gpus="V100:8", train__model="facebook/opt-1.3b", train__dtype="float32", train__micro_batch_size=4
    )
    with pytest.raises(PlanError, match=r"The bfloat16 peak of V100 .* is not known.*Take another GPU, or measure"):
        estimate_candidates(plan_for(spec), workload_of(spec))


def test_unknown_price_gives_hours_but_no_dollars() -> None:
    plan = plan_for(job())
    unknown = replace(plan, candidates=(replace(plan.candidates[0], price_per_hour_usd=None),))
    (found,) = estimate_candidates(unknown, workload_of(job()), SURE)
    assert (found.cost_usd, found.machines_usd) == (None, None)
    assert found.parts_usd["training machines"] is None
    assert found.hours is not None
    assert found.hours.p50 > 0


def test_every_factor_has_its_number_and_its_source() -> None:
    spec = job()
    found = {
        one.name: one
        for one in factors(plan_for(spec), workload_of(spec), Assumptions(), teacher=estimate_teacher(spec.data))
    }
    assert found["training FLOPs"].value == pytest.approx(6 * 6_738_415_616 * 3 * 6.66e6, rel=1e-3)
    assert (found["peak of a GPU"].value, found["MFU"].value) == (312e12, 0.4)
    assert found["training time"].value == pytest.approx(0.225, abs=0.001)
    assert found["MFU"].source.startswith("prior: ")
    assert found["preemptions"].source.startswith("AWS V100 traces of 2023-08")
    assert found["training tokens"].source == "128 a row, as in Alpaca's own data"
    assert all(one.words and one.source for one in found.values())
    assert {"teacher requests", "teacher tokens", "set-up", "work lost with each", "checkpoints kept"} <= set(found)


def side_of(spec: JobSpec) -> SideMachines:
    return side_machines(spec, load_offers(spec.compute.infra, catalogs=SNAPSHOT, machines="cpu"))


def test_rows_are_written_by_the_cheapest_machine_without_gpus_and_a_controller_watches_on_demand() -> None:
    side = side_of(job())
    assert side.generation is not None
    assert side.controller is not None
    assert (side.generation.pricing, side.generation.gpus) == (Pricing.SPOT, None)
    assert (side.controller.pricing, side.controller.instance_type) == (Pricing.ON_DEMAND, "m6i.xlarge")
    assert side_of(job(compute__regions=["us-east-1"])).generation != side.generation
    assert side_of(job(compute__infra=["lambda"], compute__gpus="A100-80GB:8")) == SideMachines()


def test_rows_and_training_are_told_apart_each_on_its_own_machines() -> None:
    spec = job()
    teacher, side = estimate_teacher(spec.data), side_of(spec)
    found = first(spec, teacher=teacher, side=side)
    rows, training = found.stages
    assert (rows.placement, training.placement) == (side.generation, found.placement)
    assert training.course == found.course
    assert rows.preemptions + training.preemptions == pytest.approx(found.preemptions)
    assert found.hours is not None
    # Quantiles do not add up, but between the best and the worst of both lies the whole.
    assert rows.hours.p10 + training.hours.p10 <= found.hours.p50 <= rows.hours.p90 + training.hours.p90
    assert rows.cost_usd is not None
    assert training.cost_usd is not None
    assert found.cost_usd is not None
    assert teacher.cost_usd is not None
    assert rows.cost_usd.p50 == pytest.approx(teacher.cost_usd, rel=0.1)
    assert rows.cost_usd.p10 + training.cost_usd.p10 < found.cost_usd.p50
    assert [one["name"] for one in found.to_json()["stages"]] == ["rows", "training"]
    unpriced = first(spec, teacher=replace(teacher, cost_usd=None), side=side).stages
    assert [one.cost_usd is None for one in unpriced] == [True, False]
    assert [one.name for one in first(spec).stages] == ["training"]  # nobody writes rows here


def test_whole_job_is_the_sum_of_its_stages() -> None:
    spec = job(compute__spot=False)
    plan, teacher = plan_for(spec), estimate_teacher(spec.data)
    calm = replace(SURE, teacher=TeacherAssumptions(spread=0.0))
    alone = estimate_candidates(plan, workload_of(spec), calm)[0]
    whole = estimate_candidates(plan, workload_of(spec), calm, teacher=teacher, side=side_of(spec))[0]
    assert alone.hours is not None
    assert whole.hours is not None
    assert whole.hours.p50 == pytest.approx(alone.hours.p50 + (300 + teacher.seconds) / 3600)
    assert whole.cost_usd is not None
    assert sum(usd or 0.0 for usd in whole.parts_usd.values()) == pytest.approx(whole.cost_usd.p50)
    assert whole.parts_usd["teacher"] == pytest.approx(teacher.cost_usd)
    assert whole.parts_usd["controller"] == pytest.approx(whole.hours.p50 * 0.192)
    assert whole.parts_usd["training machines"] == pytest.approx(alone.parts_usd["training machines"])


def test_rows_written_where_the_training_runs_need_no_start_of_their_own() -> None:
    spec = job(compute__spot=False)
    calm, teacher = replace(SURE, teacher=TeacherAssumptions(spread=0.0)), estimate_teacher(spec.data)
    alone = estimate_candidates(plan_for(spec), workload_of(spec), calm)[0]
    whole = estimate_candidates(plan_for(spec), workload_of(spec), calm, teacher=teacher)[0]
    assert alone.hours is not None
    assert whole.hours is not None
    assert whole.hours.p50 == pytest.approx(alone.hours.p50 + teacher.seconds / 3600)
    side = side_of(without_gpus())
    assert side.generation is None
    assert side.controller is not None


def test_teacher_without_a_price_leaves_the_rest_of_the_cost_known() -> None:
    spec = job(data__teacher={"model": "m"}, limits__teacher_max_usd=None)
    found = estimate_candidates(plan_for(spec), workload_of(spec), SURE, teacher=estimate_teacher(spec.data))[0]
    assert found.cost_usd is None
    assert found.machines_usd is not None
    assert found.parts_usd["teacher"] is None


def test_limits_are_held_against_the_plays() -> None:
    tight = first(job(limits__max_usd=0.01, limits__deadline_h=0.001))
    assert (tight.over_budget, tight.over_deadline) == (1.0, 1.0)
    wide = first(job(limits__max_usd=1e6, limits__deadline_h=None))
    assert (wide.over_budget, wide.over_deadline) == (0.0, None)


def test_measured_speed_replaces_the_prior_on_its_own_gpu_only() -> None:
    measured = replace(SURE, measured=(MeasuredSpeed("A100-80GB", 0.2, 0.1, "measured: x"),))
    assert first_course(job(), measured).work_s == pytest.approx(2 * first_course(job()).work_s)
    assert first_course(job(), measured).work_spread == 0.1
    h100 = job(compute__gpus="H100:8")
    assert first_course(h100, measured).work_s == first_course(h100).work_s


def test_local_job_costs_nothing_and_its_time_is_known_once_it_was_measured() -> None:
    spec = parse_job(example_text("demo"))
    plan = plan_launch(spec, run_id="demo-bcdfg", offers=load_offers(["local"], local_regions="abc"))
    unknown = estimate_candidates(plan, workload_of(spec), teacher=estimate_teacher(spec.data))[0]
    assert unknown.hours is None
    assert unknown.cost_usd is not None
    assert unknown.cost_usd.p90 == 0.0
    here = Assumptions(steps=(MeasuredSteps("process", 0.5, 0.0, 20.0, "measured: demo-x"),))
    known = estimate_candidates(plan, workload_of(spec), here)[0]
    assert known.hours is not None
    assert known.hours.p50 * 3600 == pytest.approx(20 + 60 * 0.5)
    assert known.to_json()["cost_usd"] == {"p10": 0.0, "p50": 0.0, "p90": 0.0}


def test_cloud_machine_without_gpus_has_no_price_for_the_job_before_it_was_timed() -> None:
    spec = without_gpus()
    plan = plan_launch(spec, run_id="demo-bcdfg", offers=load_offers(["aws"], catalogs=SNAPSHOT, machines="cpu"))
    found = estimate_candidates(plan, workload_of(spec), teacher=estimate_teacher(spec.data))[0]
    assert (found.hours, found.machines_usd, found.cost_usd) == (None, None, None)
    assert found.parts_usd == {"training machines": None, "teacher": 0.0}


def test_run_that_never_finishes_is_json_all_the_same() -> None:
    hopeless = first(job(), replace(SURE, hazard=Hazard(1e6, "x")), draws=3).to_json()
    assert hopeless["hours"] == {"p10": None, "p50": None, "p90": None}
    assert hopeless["parts_usd"]["training machines"] is None


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["hazard", "tokens", "mfu"]), st.floats(1.05, 4))
def test_worse_is_never_cheaper_nor_sooner(what: str, times: float) -> None:
    """With the plays' dice shared, up to the grain of the save interval, which a mean over the plays evens out."""
    spec, assumed = job(), replace(SURE, hazard=Hazard(0.5, "x"))
    work = workload_of(spec)
    worse_work, worse = work, assumed
    if what == "hazard":
        worse = replace(assumed, hazard=Hazard(0.5 * times, "x"))
    elif what == "tokens":
        worse_work = replace(work, tokens=work.tokens * times)
    elif what == "mfu":
        worse = replace(assumed, mfu=assumed.mfu / times)
    before, after = (estimate_candidates(plan_for(spec), w, a)[0] for w, a in ((work, assumed), (worse_work, worse)))
    assert sum(after.parts_usd.values()) >= sum(before.parts_usd.values()) * 0.99  # type: ignore[arg-type]
    assert before.hours is not None
    assert after.hours is not None
    assert after.hours.p50 >= before.hours.p50 * 0.99


def test_teacher_is_asked_for_as_many_rows_as_will_be_kept() -> None:
    teacher = TeacherSpec(
        model="m", base_url="http://127.0.0.1/v1", price_per_million_input_usd=1.0, price_per_million_output_usd=2.0
    )
    prior, data = TeacherAssumptions(tokens_per_second=17.0), DataSpec(teacher=teacher, num_rows=850)
    assert estimate_teacher(data, prior).seconds == 2 * 100.0  # 64 in flight, where the job leaves it to `auto`
    found = estimate_teacher(data.model_copy(update={"concurrency": 8}), prior)
    assert found.requests == 100  # 17 new tasks each, half of them kept
    assert (found.prompt_tokens, found.completion_tokens) == (100 * 700.0, 100 * 1700.0)
    assert found.seconds == 7 * 100.0  # 16 in flight
    assert found.rows == 850
    assert found.cost_usd == pytest.approx((70_000 * 1.0 + 170_000 * 2.0) / 1e6)


def test_teacher_limits_are_respected() -> None:
    free = TeacherSpec(model="m", base_url="http://127.0.0.1/v1", max_tokens=100)
    found = estimate_teacher(DataSpec(teacher=free, num_rows=850, max_requests=10))
    assert (found.requests, found.completion_tokens, found.rows) == (10, 1000.0, 85)
    assert found.cost_usd is None, "no prices in the job: unknown, not free"
    assert estimate_teacher(DataSpec(teacher="offline", num_rows=850)).cost_usd == 0.0


def test_own_reports_move_the_hazard_away_from_the_prior() -> None:
    assert spot_hazard().per_node_hour == pytest.approx(PRIOR_PER_NODE_HOUR)
    calm = spot_hazard(own_preemptions=0, own_node_hours=1000.0)
    assert calm.per_node_hour < 0.01
    assert calm.source.startswith("0 preemptions in 1000 machine hours of your own")
    assert spot_hazard(own_preemptions=1000, own_node_hours=1000.0).per_node_hour == pytest.approx(1.0, rel=0.03)


def test_peaks_are_those_of_the_trainer_and_pcie_cards_are_slower() -> None:
    assert peak_flops("A100-80GB", infra="aws", instance_type="p4de.24xlarge") == 312e12
    assert peak_flops("H100", infra="aws", instance_type="p5.48xlarge") == 989e12
    assert peak_flops("H100", infra="lambda", instance_type="gpu_1x_h100_pcie") == 756e12
    assert peak_flops("H100", infra="runpod", instance_type="8x_H100_SECURE") == 756e12
    assert peak_flops("H100-SXM", infra="runpod", instance_type="8x_H100-SXM_SECURE") == 989e12
    assert peak_flops("TPU", infra="gcp", instance_type="x") is None


def test_memory_is_known_for_every_gpu_of_the_snapshot() -> None:
    assert {offer.gpu_name for offer in load_offers(catalogs=SNAPSHOT, machines="gpu")} <= set(GPUS)


def test_every_machine_fetches_the_base_model_as_large_as_its_files_say() -> None:
    one, two = job(), job(compute__num_nodes=2)
    rate, boot = SURE.transfer_bytes_per_s, SURE.boot_s
    assert first_course(one).start_s == pytest.approx(
        boot + 2 * 6_738_415_616 / rate
    )  # nobody has looked: 2 bytes each
    for spec in (one, two):
        course = training_course(plan_for(spec).candidates[0], spec, workload_of(spec, base_bytes=27 * 10**9), SURE)
        assert course is not None
        assert course.start_s == pytest.approx(boot + 27e9 / rate)


def test_of_a_mixture_only_what_a_token_uses_takes_time(mixtral: dict[str, Any]) -> None:
    spec = job(train__model="nobody/knows", train__method="lora")
    work = workload_of(spec, read=size_by_config(mixtral))
    assert (work.num_parameters, work.active_parameters) == (46_702_792_704, 12_879_925_248)
    course = training_course(plan_for(spec).candidates[0], spec, work, SURE)
    assert course is not None
    peak = 8 * 312e12 * SURE.mfu
    assert course.work_s == pytest.approx(4 * 12_879_925_248 * work.tokens / peak)
    factor = next(one for one in factors(plan_for(spec), work, SURE) if one.name == "training FLOPs")
    assert "12.9 B parameters that a token goes through (of 46.7 B)" in factor.words
