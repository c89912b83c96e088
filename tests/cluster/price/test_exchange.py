"""What GPUs send to each other, and what that makes of an estimate where their links are slow."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import job_from_dict
from cluster.launch.planner import plan_launch
from cluster.price.assumptions import Assumptions, MeasuredSpeed
from cluster.price.courses import computing_s, training_course
from cluster.price.estimate_factors import GPUS_WAIT, Factor, factors
from cluster.price.exchange import exchange_of
from cluster.price.hardware import link_bytes_per_s
from cluster.price.offers import SNAPSHOT, load_offers
from cluster.price.workload import workload_of

P7, LORA = 6_738_415_616, 4_194_304
PRIORS = Assumptions()


def job(gpus: str = "A100-80GB:8", **train: Any) -> JobSpec:
    """LLaMA-7B on 52,000 rows of Alpaca's length."""
    return job_from_dict(
        {
            "name": "j",
            "store": "s3://bucket/runs",
            "data": {"from": "rows.jsonl"},
            "train": {"model": "huggyllama/llama-7b", **train},
            "compute": {"gpus": gpus, "infra": ["aws"]},
        }
    )


def step_bytes(**train: Any) -> float:
    spec = job(**train)
    work = workload_of(spec, num_rows=52_000)
    return exchange_of(spec.train, work, gpu="A100-80GB", link_bytes_per_s=300e9, ranks=8).step_bytes


def test_a_gpu_of_eight_receives_47_gb_with_every_micro_batch_of_a_7b() -> None:
    """docs/TRAINING.md, "The bill of Alpaca-7B, by arithmetic"."""
    once = 7 / 8 * (2 + 2 + 4) * P7
    assert once == pytest.approx(47.2e9, rel=1e-3)
    assert step_bytes(micro_batch_size=16) == pytest.approx(once)
    assert step_bytes(micro_batch_size=4) == pytest.approx(4 * once)


def test_small_gradients_are_sent_once_a_step_and_adapters_with_the_whole_base() -> None:
    four = {"micro_batch_size": 4}
    assert step_bytes(**four, method="lora") == pytest.approx(7 / 8 * (4 * (2 + 2) * P7 + 4 * LORA))
    small = step_bytes(**four, model="facebook/opt-1.3b")
    assert small == pytest.approx(7 / 8 * (4 * (2 + 2) + 4) * 1_315_758_080)
    assert step_bytes(**four, engine="deepspeed-zero2") == step_bytes(**four, engine="ddp") == 7 / 8 * 4 * P7


def test_one_gpu_sends_nothing() -> None:
    spec = job("A100-80GB:1", method="lora")
    work = workload_of(spec, num_rows=52_000)
    assert exchange_of(spec.train, work, gpu="A100-80GB", link_bytes_per_s=300e9, ranks=1).seconds == 0


def test_a_card_in_a_slot_has_the_slots_link() -> None:
    assert link_bytes_per_s("H100", infra="aws", instance_type="p5.48xlarge") == 450e9
    assert link_bytes_per_s("H100", infra="lambda", instance_type="gpu_1x_h100_pcie") == 64e9
    assert link_bytes_per_s("A100-80GB", infra="runpod", instance_type="8x_A100-80GB_SECURE") == 32e9
    assert link_bytes_per_s("L40S", infra="aws", instance_type="g6e.12xlarge") == 32e9


def _told(spec: JobSpec, assumed: Assumptions = PRIORS) -> tuple[float, float, dict[str, Factor]]:
    """Seconds of computing and of training, and the factors."""
    work = workload_of(spec, num_rows=52_000)
    plan = plan_launch(spec, run_id="j-bcdfg", offers=load_offers(["aws"], catalogs=SNAPSHOT), work=work)
    course = training_course(plan.candidates[0], spec, work, assumed)
    assert course is not None
    told = {one.name: one for one in factors(plan, work, assumed)}
    return computing_s(plan.candidates[0], work, assumed), course.work_s, told


def test_gpus_without_nvlink_take_as_long_as_their_links_and_that_is_said() -> None:
    computed_s, work_s, told = _told(job("L40S:4", micro_batch_size=4))
    sent_s = 1221 * 8 * 3 / 4 * (2 + 2 + 4) * P7 / 32e9
    assert work_s == pytest.approx(sent_s)
    assert work_s > 8 * computed_s
    assert told["training time"].value == pytest.approx(computed_s / 3600)
    assert told[GPUS_WAIT].value == pytest.approx((sent_s - computed_s) / 3600)
    assert "receives 323 GB from the others, in 8 micro batches, over a link of 32 GB/s" in told[GPUS_WAIT].words
    assert told[GPUS_WAIT].words.endswith("where each GPU holds the model, or GPUs with NVLink")


def test_copies_of_a_base_model_send_adapters_alone() -> None:
    slow, quick = (_told(job("L40S:4", method="lora", engine=engine)) for engine in ("auto", "ddp"))
    assert "less with a larger train.micro_batch_size, or train.engine: ddp" in slow[2][GPUS_WAIT].words
    assert quick[1] == quick[0] < slow[1] / 4


def test_a_measured_speed_has_the_waits_in_it() -> None:
    measured = Assumptions(measured=(MeasuredSpeed("L40S", 0.05, 0.1, "measured: x"),))
    computed_s, work_s, told = _told(job("L40S:4"), measured)
    assert work_s == computed_s
    assert GPUS_WAIT not in told


def test_nvlink_keeps_up_with_a_7b() -> None:
    computed_s, work_s, told = _told(job(micro_batch_size=4))
    assert work_s == computed_s
    assert GPUS_WAIT not in told
