"""From a job and offers to a plan: the order of candidates, filters, memory, and refusals in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.examples import example_names, example_text
from alpaca_jobs.known_models import size_of
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, parse_job
from cluster.errors import PlanError
from cluster.launch.planner import offers_for, plan_launch, resolve_store, side_offers_for
from cluster.plan import LaunchPlan, Pricing
from cluster.price.offers import SNAPSHOT, Offer, PriceList, load_offers
from cluster.price.side_machines import served_gpus

HERE = Path("/work/here")


def job(name: str = "alpaca-7b", **changes: Any) -> JobSpec:
    """An example, changed: compute__gpus="L4:1" sets compute.gpus. Memory goes by the micro batch, so that is fixed."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    fixed = {"train.micro_batch_size": 4} if name == "alpaca-7b" else {}
    return change_job(parse_job(example_text(name)), {**fixed, **changed})


def plan(spec: JobSpec, offers: PriceList | None = None, **options: Any) -> LaunchPlan:
    if offers is None:
        offers = load_offers(spec.compute.infra, local_regions=spec.compute.regions or "abc", catalogs=SNAPSHOT)
    return plan_launch(spec, run_id=f"{spec.name}-bcdfg", offers=offers, folder=HERE, code_version="0+0", **options)


def refusal(spec: JobSpec, offers: PriceList | None = None, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        plan(spec, offers, **options)
    return str(caught.value)


def offer(region: str, price: float | None, pricing: Pricing = Pricing.SPOT, **more: Any) -> Offer:
    fields = {"zone": f"{region}-1", "gpu_name": "A100-80GB", "gpu_count": 8, "infra": "aws", **more}
    return Offer(region=region, instance_type="p4de", pricing=pricing, price_per_hour_usd=price, **fields)


@pytest.mark.parametrize("name", example_names())
def test_every_example_has_a_plan(name: str) -> None:
    spec = parse_job(example_text(name))
    found = plan(spec, side_offers=side_offers_for(spec, offers_for(spec)))
    assert found.candidates
    assert all(place.gpus == served_gpus(spec) for place in found.generation)
    assert found.run_id == f"{job(name).name}-bcdfg"
    assert found.code_version == "0+0"


def test_a_teacher_of_ones_own_is_never_put_where_it_has_no_gpu() -> None:
    assert "data.teacher.server.gpus is A100-80GB:1, but no such machine has a price" in refusal(job("own-teacher"))


def test_plan_is_pure() -> None:
    assert plan(job()) == plan(job())


def test_demo_runs_here_for_nothing_in_its_regions_order() -> None:
    found = plan(job("demo"))
    assert [place.name for place in found.candidates] == ["local/a", "local/b", "local/c"]
    assert {place.price_per_hour_usd for place in found.candidates} == {0.0}
    assert (found.world_size, found.is_local) == (2, True)
    assert found.store_uri == "file:///work/here/runs"
    assert found.notes == ()
    assert [p.region for p in plan(job("demo", compute__regions=["c", "a"])).candidates] == ["c", "a"]


def test_offers_of_a_local_job_are_its_regions_or_a_b_c() -> None:
    assert [o.region for o in offers_for(job("demo", compute__regions=None))] == ["a", "b", "c"]
    assert [o.region for o in offers_for(job("demo", compute__regions=["x"]))] == ["x"]


def test_candidates_are_ordered_by_price_then_name() -> None:
    prices = PriceList((offer("r3", 5.0), offer("r1", 5.0), offer("r2", 4.0), offer("r1", 5.0, zone="r1-0")))
    assert [place.zone for place in plan(job(), prices).candidates] == ["r2-1", "r1-0", "r1-1", "r3-1"]


def test_on_demand_machines_come_last_and_only_when_allowed() -> None:
    prices = PriceList((offer("r1", 5.0), offer("r2", 4.0, Pricing.ON_DEMAND)))
    assert [p.region for p in plan(job(), prices).candidates] == ["r1"]
    assert [p.region for p in plan(job(compute__spot=False), prices).candidates] == ["r2"]
    for allowed in ("last-resort", "when-needed"):
        last = plan(job(compute__spot={"on_demand": allowed}), prices)
        assert [(p.region, p.pricing) for p in last.candidates] == [("r1", Pricing.SPOT), ("r2", Pricing.ON_DEMAND)]


def test_unknown_price_is_no_candidate() -> None:
    prices = PriceList((offer("r1", None, note="none is listed"), offer("r2", 9.0)))
    assert [p.region for p in plan(job(), prices).candidates] == ["r2"]
    assert refusal(job(), PriceList(prices.offers[:1])) == (
        "compute.spot allows only spot machines, and none of those that fit has such a price (none is listed). Set "
        "spot: false, or spot: {on_demand: last-resort}, or allow other clouds."
    )


def test_world_size_is_gpus_times_nodes() -> None:
    found = plan(job(compute__num_nodes=2))
    assert (found.world_size, found.num_nodes) == (16, 2)
    assert {place.num_nodes for place in found.candidates} == {2}
    assert {place.gpus for place in found.candidates} == {"A100-80GB:8"}


def test_gpu_names_are_found_in_any_case() -> None:
    assert plan(job(compute__gpus="a100-80gb:8")).candidates == plan(job()).candidates


def test_regions_are_a_filter() -> None:
    found = plan(job(compute__regions=["us-east-1"]))
    assert {place.region for place in found.candidates} == {"us-east-1"}
    mixed = plan(job(compute__regions=["us-east-1", "us-east1"]))
    assert {place.region for place in mixed.candidates} == {"us-east-1"}
    assert "Left out, because the price list has no such machine there: us-east1." in mixed.notes


def _refusals() -> list[tuple[dict[str, Any], str]]:
    """(changes to alpaca-7b, message) of plan_refusals.txt: blocks of JSON, then what is said about such a job."""
    blocks = (Path(__file__).parent / "plan_refusals.txt").read_text(encoding="utf-8").split("\n\n")
    return [(json.loads(changes), said.rstrip("\n")) for changes, _, said in (one.partition("\n") for one in blocks)]


@pytest.mark.parametrize(("changes", "message"), _refusals())
def test_refusal_says_what_was_found_and_what_is_wanted(changes: dict[str, Any], message: str) -> None:
    assert refusal(job(**changes)) == message


def test_price_list_of_another_cloud_is_of_no_use() -> None:
    assert refusal(job(), PriceList(())) == (
        "There are no prices for aws, gcp. Known: local, aws, gcp, azure, lambda, runpod, nebius."
    )


def test_auto_takes_the_cheapest_shape_that_holds_the_model_and_says_why() -> None:
    prices = PriceList(
        (
            offer("r1", 1.0, gpu_name="L4", gpu_count=4),  # 36 GiB on each: too small
            offer("r1", 0.5, gpu_name="L40S", gpu_count=4),
            offer("r2", 0.6, gpu_name="L40S", gpu_count=4),
            offer("r1", 2.0, gpu_name="V100", gpu_count=16),  # holds it, but has no bfloat16
            offer("r1", 0.2, gpu_name="B9000", gpu_count=8),  # an unknown GPU is never picked
            offer("r1", 8.0),
        )
    )
    found = plan(job(compute__gpus="auto"), prices)
    assert [(p.region, p.gpus) for p in found.candidates] == [("r1", "L40S:4"), ("r2", "L40S:4")]
    assert found.world_size == 4
    assert found.notes[0] == (
        "gpus: auto took L40S:4, expected to finish the training for least, set-up counted: L40S:4 1.86 USD in 3.79 h; "
        "then A100-80GB:8 3.09 USD in 0.39 h. It fits: 6.74 B parameters, all trained, engine fsdp on 4 x L40S, 1,024 "
        "tokens in a micro batch: 35.8 GiB on each GPU (weights 6.3, gradients 6.3, optimizer 12.6, gathered 3.8, "
        "activations 6.8), and 92% of its 45 GiB can be used."
    )


def test_auto_takes_the_dearer_machine_where_its_speed_pays_for_it() -> None:
    """A vicuna's worth of tokens: by the hour the L40S are cheaper, by the job they are not."""
    prices = PriceList((offer("r1", 7.0, gpu_name="L40S", gpu_count=4), offer("r1", 8.0)))
    assert plan(job(compute__gpus="auto"), prices).candidates[0].gpus == "A100-80GB:8"


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"train__epochs": 300, "limits__deadline_h": 100}, "H100:8"),  # 238 USD in 15 h; the L40S: 1,252 USD in 212 h
        ({"train__max_steps": 10}, "L40S:8"),  # next to nothing but set-up, which costs by the hour
    ],
)
def test_auto_counts_set_up(changes: dict[str, Any], gpus: str) -> None:
    prices = PriceList((offer("r1", 6.0, gpu_name="L40S"), offer("r1", 15.9, gpu_name="H100")))
    assert plan(job(compute__gpus="auto", **changes), prices).candidates[0].gpus == gpus


@pytest.mark.parametrize(("deadline_h", "gpus"), [(100, "L40S:8"), (12, "H100:8")])
def test_auto_takes_a_machine_that_keeps_the_deadline(deadline_h: float, gpus: str) -> None:
    prices = PriceList((offer("r1", 6.0, gpu_name="L40S"), offer("r1", 80.0, gpu_name="H100")))
    spec = job(compute__gpus="auto", train__epochs=300, train__micro_batch_size=16, limits__deadline_h=deadline_h)
    assert plan(spec, prices).candidates[0].gpus == gpus


def test_auto_goes_by_the_hour_where_nobody_has_counted_the_rows() -> None:
    prices = PriceList((offer("r1", 7.0, gpu_name="L40S", gpu_count=4), offer("r1", 8.0)))
    found = plan(job("vicuna-7b", compute__gpus="auto", data__from="conversations.json"), prices)
    assert found.candidates[0].gpus == "L40S:4"
    assert "the lowest price per hour that holds" in found.notes[0]
    assert "nobody has counted its rows" in found.notes[0]


def test_auto_counts_all_nodes_together() -> None:
    found = plan(job(compute__gpus="auto", compute__num_nodes=4, train__model="huggyllama/llama-65b"))
    assert (found.candidates[0].gpus, found.world_size) == ("A100-80GB:8", 32)


def test_adapters_of_a_7b_fit_on_one_gpu_and_auto_buys_no_machine_of_eight() -> None:
    for gpus in ("A100-80GB:1", "L4:1"):
        assert plan(job(compute__gpus=gpus, train__method="lora")).candidates[0].gpus == gpus
    prices = PriceList((offer("r1", 0.3, gpu_name="L4", gpu_count=1), offer("r1", 10.0, gpu_name="A100")))
    lora = {"train__method": "lora", "train__model": "meta-llama/Meta-Llama-3-8B", "train__micro_batch_size": 2}
    assert plan(job(compute__gpus="auto", **lora), prices).candidates[0].gpus == "L4:1"


def test_a_copy_of_the_model_on_each_gpu_is_not_planned_where_it_does_not_fit() -> None:
    changes = {"train__engine": "ddp", "train__micro_batch_size": 64}
    said = refusal(job(compute__gpus="A100:8", **changes))
    assert "compute.gpus is A100:8, but huggyllama/llama-7b does not fit: " in said
    assert "engine ddp on 8 x A100" in said
    assert "(weights 37.7, gradients 50.2, optimizer 50.2, activations " in said
    assert "Set train.engine: fsdp" in said
    assert "set train.method: lora" in said


def test_offload_takes_machines_with_room_for_it_and_names_the_others() -> None:
    changes = {"compute__gpus": "A10G:4", "train__cpu_offload": True}
    small, large = (offer("r1", 1.0, gpu_name="A10G", gpu_count=4, memory_gib=gib) for gib in (96.0, 256.0))
    found = plan(job(**changes), PriceList((small, replace(large, instance_type="g5.12xlarge"))))
    assert {place.instance_type for place in found.candidates} == {"g5.12xlarge"}
    assert "Left out, because 176 GiB are kept in a machine's memory: p4de." in found.notes
    assert refusal(job(**changes), PriceList((small,))) == (
        "176 GiB are kept in the memory of each machine (100 for train.cpu_offload, 75 for the copy that saves are "
        "stored from), but those with A10G:4 have at most 96 GiB, of which 90% can be used. Raise num_nodes, set "
        "train.method: lora, or take machines with more memory."
    )


def test_a_size_in_the_name_is_a_guess_that_memory_is_checked_by() -> None:
    found = plan(job(train__model="nobody/Some-7B-Chat"))
    assert found.notes[0].startswith(
        "Whether it fits was checked by a guess: 7.00 B parameters (7 B parameters are a guess by its name), "
    )
    assert "does not fit" in refusal(job(train__model="nobody/Some-70B"))


def test_model_of_unknown_size_is_planned_with_a_note() -> None:
    found = plan(job(train__model="a/b"))
    assert found.notes[0] == "Whether it fits was not checked: the size of a/b is not known here."


def test_job_without_gpus_gets_machines_with_a_cpu_for_every_thread() -> None:
    found = plan(job(compute__gpus=None, compute__workers=3, compute__threads_per_worker=2))
    assert {place.instance_type for place in found.candidates} == {"m6i.2xlarge", "n2-standard-8", "n1-highmem-8"}
    assert (found.world_size, found.candidates[0].gpus) == (3, None)


def test_notes_say_where_prices_come_from() -> None:
    said = plan(job()).notes[-1]
    assert said.startswith("Prices: aws from the snapshot that ships with alpaca-jobs (undated); gcp from")


@pytest.mark.parametrize(
    ("store", "uri"),
    [
        ("auto", "file:///work/here/runs"),
        ("file://./runs", "file:///work/here/runs"),
        ("runs", "file:///work/here/runs"),
        ("file:///data/runs", "file:///data/runs"),
        ("/data/runs", "file:///data/runs"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_store_of_a_local_job_means_the_same_from_everywhere(store: str, uri: str) -> None:
    assert resolve_store(job("demo", store=store), HERE) == uri


def test_store_auto_stays_auto_on_a_cloud() -> None:
    assert resolve_store(job(), HERE) == "auto"


def test_the_size_that_a_model_s_files_tell_counts_before_its_name() -> None:
    seven, thirteen = size_of("huggyllama/llama-7b"), size_of("huggyllama/llama-13b")
    assert seven is not None
    assert thirteen is not None
    spec = job(compute__gpus="L40S:4", train__model="nobody/knows")
    assert "the size of nobody/knows is not known here" in " ".join(plan(spec).notes)
    assert "does not fit: 13.02 B parameters" in refusal(spec, read=thirteen)
    found = plan(spec, read=seven, base_bytes=13_476_831_232)
    assert (found.num_parameters, found.base_bytes) == (6_738_415_616, 13_476_831_232)
    assert LaunchPlan.from_json(found.to_json()) == found


def test_machines_are_left_out_whose_ranks_could_not_load_a_model_that_is_read_all_at_once() -> None:
    seven = size_of("huggyllama/llama-7b")
    assert seven is not None
    whole, spec = replace(seven, is_whole=True), job(compute__gpus="A100-80GB:8")
    large = replace(offer("r2", 9.0, memory_gib=1152.0), instance_type="big")
    prices = PriceList((offer("r1", 8.0, memory_gib=192.0), large))
    assert [place.region for place in plan(spec, prices, read=seven).candidates] == ["r1", "r2"]
    found = plan(spec, prices, read=whole)
    assert [place.region for place in found.candidates] == ["r2"]
    assert "Left out, because 201 GiB are kept in a machine's memory: p4de." in found.notes
    said = refusal(spec, PriceList((offer("r1", 8.0, memory_gib=192.0),)), read=whole)
    assert "each of 8 ranks would load all of it, 201 GiB in float32 in the memory of each machine" in said
    assert "those with A100-80GB:8 have at most 192 GiB. Save it anew" in said
