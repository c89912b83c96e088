"""What earlier runs teach: read from the reports in a store, used only where the runs are alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.known_models import size_of
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, parse_job
from checkpoints.store import Store
from cluster.hazard import PRIOR_PER_NODE_HOUR
from cluster.launch.estimating import Counted, estimate_plan, gather_facts, plan_with
from cluster.launch.planner import offers_for, plan_launch
from cluster.price.assumptions import Assumptions
from cluster.price.experience import PastRun, learn
from cluster.price.offers import SNAPSHOT, load_offers
from cluster.price.past_runs import read_past_runs
from cluster.runs.run_view import index_key


def job(name: str = "alpaca-7b", **changes: Any) -> JobSpec:
    return change_job(parse_job(example_text(name)), {key.replace("__", "."): value for key, value in changes.items()})


def attempt(**facts: Any) -> dict[str, Any]:
    return {"pricing": "spot", "seconds": 3600.0, "stop_reason": "done", **facts}


def past(spec: JobSpec, run_id: str = "past-bcdfg", **facts: Any) -> PastRun:
    """A run of a job whose report says these things; 8 x A100-80GB at an MFU of 0.25, if nothing else is said."""
    offers = load_offers(spec.compute.infra, catalogs=SNAPSHOT, local_regions="abc")
    tokens = round(0.25 * 8 * 312e12 * 100 / (6 * 6_738_415_616))
    report = {
        "attempts": [attempt()],
        "goodput": {"wall_s": 50.0},
        "rows": 1000,
        "teacher_usd": 2.0,
        "pace": {
            "training": {"ranks": 8, "steps": 50, "tokens": tokens, "seconds": 100.0},
            "generation": {"requests": 100, "rows": 850, "seconds": 50.0},
        },
    }
    return PastRun(run_id, "", plan_launch(spec, run_id=run_id, offers=offers), {**report, **facts})


def test_speed_of_an_earlier_run_replaces_the_prior_and_says_so() -> None:
    (speed,) = learn(job(), [past(job())]).measured
    assert (speed.gpu, speed.source) == ("A100-80GB", "measured: past-bcdfg")
    assert speed.mfu == pytest.approx(0.25, rel=1e-3)
    assert speed.spread == 0.1


def test_the_speed_of_a_model_that_only_its_files_tell_the_size_of_is_learned() -> None:
    spec, seven = job(train__model="nobody/knows"), size_of("huggyllama/llama-7b")
    assert learn(spec, [past(spec)]).measured == ()
    (speed,) = learn(spec, [past(spec)], read=seven).measured
    assert speed.mfu == pytest.approx(0.25, rel=1e-3)


def test_several_runs_are_averaged_and_their_spread_is_kept() -> None:
    twice = {"training": {"ranks": 8, "steps": 50, "tokens": 1, "seconds": 1.0}}
    fast = past(job(), "past-fffff")
    tokens = fast.report["pace"]["training"]["tokens"]
    twice["training"] |= {"tokens": 4 * tokens, "seconds": 100.0}
    (speed,) = learn(job(), [past(job()), replace(fast, report={**fast.report, "pace": twice})]).measured
    assert speed.mfu == pytest.approx(0.5, rel=1e-3)
    assert speed.spread == pytest.approx(0.98, abs=0.01)
    assert speed.source == "measured: past-bcdfg, past-fffff"


@pytest.mark.parametrize(
    "other",
    [
        {"train__max_length": 256},
        {"train__model": "facebook/opt-6.7b"},
        {"train__gradient_checkpointing": True},
        {"train__exactness": "bits"},
        {"train__method": "lora"},
        {"train__engine": "deepspeed-zero3"},
        {"train__sharding": "hybrid"},
        {"train__cpu_offload": True},
        {"train__recipe": "pretrain", "data": {"from": "x.txt"}},
        {"train__compile": True},
    ],
)
def test_runs_that_train_otherwise_say_nothing_about_the_speed(other: dict[str, Any]) -> None:
    assert learn(job(), [past(job(**other))]).measured == ()


def test_the_mfu_of_lora_is_counted_with_its_own_flops() -> None:
    spec = job(train__method="lora")
    (speed,) = learn(spec, [past(spec)]).measured
    assert speed.mfu == pytest.approx(0.25 * 4 / 6, rel=1e-3)
    other = job(train__method="lora", train__lora={"rank": 64})
    assert learn(spec, [past(other)]).measured == ()


def test_preemptions_of_ones_own_spot_machines_move_the_hazard() -> None:
    attempts = [attempt(stop_reason="preempted"), attempt(stop_reason="lost"), attempt(pricing="on_demand"), attempt()]
    hazard = learn(job(), [past(job(compute__num_nodes=2), attempts=attempts)]).hazard
    assert hazard.source.startswith("2 preemptions in 6 machine hours of your own")
    assert hazard.per_node_hour == pytest.approx((PRIOR_PER_NODE_HOUR * 20 + 2) / 26)


def test_kills_on_this_machine_are_no_preemptions() -> None:
    drilled = past(job("demo"), attempts=[attempt(stop_reason="lost")] * 9)
    assert learn(job(), [drilled]).hazard == Assumptions().hazard


def test_teacher_of_an_earlier_run_is_asked_at_its_price_and_speed() -> None:
    teacher = learn(job(), [past(job())]).teacher
    assert (teacher.accept_rate, teacher.rows_per_second, teacher.usd_per_row) == (0.5, 17.0, 0.002)
    assert teacher.source == "measured: past-bcdfg"
    facts = gather_facts(job(), past=[past(job())])
    assert facts.teacher is not None
    assert facts.teacher.cost_usd == pytest.approx(52_000 * 0.002)
    assert facts.teacher.seconds == pytest.approx(52_000 / 17.0)


@pytest.mark.parametrize(
    "other",
    [
        {"data__teacher__model": "gpt-9"},
        {"data__concurrency": 1},
        {"data__recipe": "self-instruct"},
        {"data__teacher__batch_api": True},
    ],
)
def test_another_teacher_says_nothing(other: dict[str, Any]) -> None:
    assert learn(job(), [past(job(**other))]).teacher == Assumptions().teacher


def test_self_instruct_learns_rows_of_an_instruction_from_rows_of_a_request() -> None:
    spec = job(data__recipe="self-instruct", data__num_prompt_seeds=6, data__max_tasks_per_request=16)
    pace = {"training": None, "generation": {"requests": 1000, "rows": 400, "seconds": 50.0}}
    facts = gather_facts(spec, past=[past(spec, pace=pace)])
    assert facts.teacher is not None
    assert facts.teacher.requests == pytest.approx(52_000 / 0.4, rel=0.001)
    assert facts.teacher.seconds == pytest.approx(52_000 / 8.0)
    offers = offers_for(spec)
    found = {one.name.strip(): one for one in estimate_plan(plan_with(spec, facts, offers), facts, offers).factors}
    kinds = [found[name].value for name in ("instruction lists", "classification tests", "instances")]
    assert sum(kinds) == found["teacher requests"].value
    assert found["instances"].source.startswith("measured: past-bcdfg; kinds: Self-Instruct, table 1")


def test_the_wait_for_batches_is_a_factor_with_its_source() -> None:
    spec = job(data__teacher={"model": "gpt-4o-mini", "batch_api": True})
    facts, offers = gather_facts(spec), offers_for(spec)
    (waited,) = (one for one in estimate_plan(plan_with(spec, facts, offers), facts, offers).factors
                 if one.name == "teacher time")  # fmt: skip
    assert (waited.value, waited.words) == (48.0, "2 rounds of batches, 24 h each at most")
    assert waited.source.startswith("prior, an upper bound: OpenAI's Batch API guide")


def test_steps_without_gpus_are_learned_from_runs_with_as_many_ranks_on_such_a_machine() -> None:
    timed = {"training": {"ranks": 2, "steps": 40, "tokens": 9, "seconds": 20.0}, "generation": None}
    (steps,) = learn(job("demo"), [past(job("demo"), pace=timed)]).steps
    assert (steps.instance_type, steps.step_s, steps.rest_s) == ("process", 0.5, 30.0)
    away = past(job("demo"), pace=timed, goodput={"wall_s": 950.0, "teacher_wait_s": 900.0})
    assert learn(job("demo"), [away]).steps[0].rest_s == 30.0, "a teacher that was down is no part of a start"
    assert learn(job("demo", compute__workers=3), [past(job("demo"), pace=timed)]).steps == ()
    assert learn(job(), [past(job("demo"), pace=timed)]).steps == ()
    cloud = job("demo", store="auto", compute__infra=["aws"], compute__regions=["us-east-1"])
    learned = learn(cloud, [past(cloud, pace=timed)])
    assert [one.instance_type for one in learned.steps] == ["m6i.large"]
    facts = gather_facts(cloud, past=[past(cloud, pace=timed)])
    offers = offers_for(cloud)
    known = estimate_plan(plan_with(cloud, facts, offers), facts, offers).candidates[0]
    assert known.hours is not None
    assert known.hours.p50 * 3600 > 300 + 30 + 60 * 0.5


def test_reports_are_read_from_a_store_newest_first_and_unreadable_runs_are_left_out(tmp_path: Path) -> None:
    root = Store.open(f"file://{tmp_path}")
    for number, run_id in enumerate(("past-bbbbb", "past-ccccc", "past-ddddd", "past-ggggg")):
        run, at = past(job(), run_id), f"2026-11-2{number}T00:00:00.000Z"
        root.put_once(index_key(run_id), {"job_name": "past", "launched_at": at})
        body = {**run.plan.to_json(), "launched_at": at} if run_id != "past-ccccc" else {"plan": "of another version"}
        root.child(run_id).put_once("job.json", body)
        if run_id != "past-ddddd":  # still running
            root.child(run_id).put_once("reports/attempt-000001.json", dict(run.report))
    found = read_past_runs([root])
    assert [run.run_id for run in found] == ["past-ggggg", "past-bbbbb"]
    assert learn(job(), found).measured[0].source == "measured: past-ggggg, past-bbbbb"
    assert [run.run_id for run in read_past_runs([root], limit=1)] == ["past-ggggg"]
    assert read_past_runs([root, root]) == found, "a copy of a run is no second one"


def test_estimate_goes_from_job_to_dollars_and_names_its_sources() -> None:
    facts = gather_facts(job(), past=[past(job())])
    offers = offers_for(job())
    found = estimate_plan(plan_with(job(), facts, offers), facts, offers)
    sources = {one.name: one.source for one in found.factors}
    assert sources["MFU"] == sources["teacher requests"] == "measured: past-bcdfg"
    assert found.on_demand is not None
    assert found.candidates[0].cost_usd is not None
    assert found.on_demand.cost_usd is not None
    assert found.on_demand.cost_usd.p50 > found.candidates[0].cost_usd.p50
    assert found.unpriced == ()
    assert estimate_plan(found.plan, facts, offers).to_json() == found.to_json(), "the same seed gives the same numbers"


def test_what_the_user_counted_fills_what_is_not_known() -> None:
    spec = job(data={"from": "s3://bucket/rows.json"}, train__model="a/b")
    facts = gather_facts(spec)
    assert facts.work is None
    assert "estimate --parameters 7e9" in facts.unknown
    known = gather_facts(spec, counted=Counted(1000, 100.0, 10**9))
    assert known.work is not None
    assert (known.work.num_parameters, known.work.tokens, known.work.source) == (10**9, 300_000.0, "given")
