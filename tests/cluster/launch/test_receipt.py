"""The receipt: by the cloud's own records where there are some, else by the run's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.cloud.aws_account import AwsAccount
from cluster.events import iso_time
from cluster.job_record import ESTIMATE_KEY
from cluster.launch.billed import read_paid
from cluster.launch.receipt import NOT_THE_INVOICE, Paid, make_receipt
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.runs.attempt_summary import AttemptSummary
from cluster.runs.machines import CloudMachine

T0 = 1_800_000_000.0
PLACES = (
    Placement("aws", "us-east-1", "us-east-1a", "m6i.large", Pricing.SPOT, 3.6, 2),
    Placement("aws", "us-east-1", "us-east-1b", "m6i.large", Pricing.SPOT, 4.0, 2),
    Placement("aws", "us-west-2", None, "m6i.large", Pricing.ON_DEMAND, 7.2, 2),
)


def a_plan(*, infra: str = "aws") -> LaunchPlan:
    body = {
        "name": "demo", "store": "s3://b", "data": {"num_rows": 8, "teacher": "offline"},
        "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": [infra], "workers": 1},
    }  # fmt: skip
    places = PLACES if infra == "aws" else (Placement("local", "a", None, "process", Pricing.ON_DEMAND, 0.0, 1),)
    return LaunchPlan("demo-x3fkd", JobSpec.model_validate(body), "s3://b", places, 1, "0+test")


def attempt(number: int, place: str, began: float, ended: float, **facts: Any) -> AttemptSummary:
    given: dict[str, Any] = {
        "number": number, "place": place, "pricing": "spot", "started_at": iso_time(T0 + began),
        "ended_at": iso_time(T0 + ended), "stop_reason": "lost", "detail": "", "has_base": True, "base": None,
        "reached": None, "seconds": ended - began, "billed_s": 100.0, "cost_usd": 0.25,
    }  # fmt: skip
    return AttemptSummary(**given | facts)


def machine(name: str, region: str, began: float, ended: float | None, **facts: Any) -> CloudMachine:
    given: dict[str, Any] = {
        "infra": "aws", "region": region, "instance_id": name, "instance_type": "m6i.large", "pricing": Pricing.SPOT,
        "run_id": "demo-x3fkd", "cluster": "demo-x3fkd-1", "state": "running" if ended is None else "terminated",
        "started_at_s": T0 + began, "ended_at_s": None if ended is None else T0 + ended,
    }  # fmt: skip
    return CloudMachine(**given | facts)


def paid(**facts: Any) -> Paid:
    given: dict[str, Any] = {
        "attempts": (), "machines": (), "controllers": (), "controller_words": "in SkyPilot's API server",
        "teacher_usd": None, "asked": False, "stored_bytes": 0, "launched_at": iso_time(T0), "estimate": None,
    }  # fmt: skip
    return Paid(**given | facts)


def test_every_machine_is_paid_for_from_its_boot_to_its_end_by_the_clouds_record() -> None:
    first = [machine("i-1", "us-east-1", 20, 120), machine("i-2", "us-east-1", 25, 125)]
    lone = machine("i-0", "us-west-2", 2, 5, pricing=Pricing.ON_DEMAND)  # it never became an attempt
    second = [machine(name, "us-east-1", 160, None) for name in ("i-3", "i-4")]
    given = paid(
        attempts=(attempt(1, "aws/us-east-1", 10, 130), attempt(2, "aws/us-east-1", 150, 0, ended_at="")),
        machines=[lone, *first, *second],
    )
    lines = {line.what: line for line in make_receipt(a_plan(), given, now=T0 + 200).lines}
    assert lines["attempt 1"].seconds == 200
    assert lines["attempt 1"].usd == pytest.approx(200 * 3.6 / 3600)
    assert lines["attempt 1"].detail == "2 x m6i.large (spot) in aws/us-east-1: i-1, i-2"
    assert lines["attempt 2"].seconds == 80  # until now: they still run
    assert lines["machines before an attempt began"].usd == pytest.approx(3 * 7.2 / 3600)
    assert {line.source for line in lines.values() if line.what.startswith("attempt")} == {"the cloud's record"}


def test_without_the_clouds_record_the_runs_own_counts_and_says_so() -> None:
    given = paid(attempts=(attempt(1, "aws/us-east-1", 10, 130), attempt(2, "", 140, 150, cost_usd=None)))
    receipt = make_receipt(a_plan(), given, now=T0 + 200)
    one, other = receipt.lines[:2]
    assert (one.seconds, one.usd, one.source) == (200, 0.25, "the run's own record")
    assert other.usd is None
    assert receipt.unknown == ("attempt 2: an unknown machine in an unknown place",)
    assert receipt.usd == pytest.approx(0.25)


def test_a_controller_counts_for_as_long_as_the_run_lasted() -> None:
    watching = machine("i-c", "us-east-1", -5_000, None, pricing=Pricing.ON_DEMAND, instance_type="m6i.xlarge")
    given = paid(attempts=(attempt(1, "aws/us-east-1", 10, 130),), controllers=[(watching, 0.36)])
    line = next(line for line in make_receipt(a_plan(), given, now=T0 + 900).lines if line.what == "controller")
    assert (line.seconds, line.usd) == (130, pytest.approx(130 * 0.36 / 3600))
    unpriced = make_receipt(a_plan(), replace(given, controllers=[(watching, None)]), now=T0 + 900)
    assert unpriced.unknown == ("controller: m6i.xlarge in aws/us-east-1, while the run lasted",)


def test_teacher_store_and_estimate_stand_beside_each_other() -> None:
    month = 730 * 3600.0
    estimate = {"candidates": [{"cost_usd": {"p10": 1.0, "p50": 2.0, "p90": 3.0}}, {"cost_usd": None}]}
    given = paid(teacher_usd=1.5, asked=True, stored_bytes=100_000_000_000, estimate=estimate)
    receipt = make_receipt(a_plan(), given, now=T0 + month / 2)
    usd = {line.what: line.usd for line in receipt.lines}
    assert usd == {"controller": 0.0, "store": pytest.approx(1.15), "teacher": 1.5}
    body = json.loads(json.dumps(receipt.to_json()))
    assert body["estimated_usd"] == {"p10": 1.0, "p50": 2.0, "p90": 3.0}
    assert body["usd"] == pytest.approx(2.65)
    assert body["note"] == NOT_THE_INVOICE
    here = make_receipt(a_plan(infra="local"), paid(asked=True), now=T0)
    assert [line.what for line in here.lines] == ["teacher"]


def test_what_the_cloud_said_is_kept_for_when_it_has_forgotten(
    aws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = AwsAccount()
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "alpaca-jobs-run", "Value": "demo-x3fkd"}]}]
    ec2 = account.client("ec2", "us-east-1")
    answer = ec2.run_instances(
        ImageId="ami-785db401", MinCount=1, MaxCount=1, InstanceType="m6i.large", TagSpecifications=tags
    )
    ec2.terminate_instances(InstanceIds=[answer["Instances"][0]["InstanceId"]])
    root = Store.open(f"file://{tmp_path}/store")
    store = root.child("demo-x3fkd")
    store.put_once("job.json", {**a_plan().to_json(), "launched_at": iso_time(T0)})
    store.put_once(ESTIMATE_KEY, {"candidates": []})
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": PLACES[0].to_json(), "started_at": iso_time(T0)})
    log.put_base(1, None)
    writer = CommitWriter(store, LAYOUT, CommitRef("generate", 1, 1), fence=None)
    writer.put("rows.jsonl", b"x" * 1000)
    writer.publish(meta={})

    plan, given, why = read_paid(root, "demo-x3fkd")
    assert (plan.run_id, why, given.stored_bytes) == ("demo-x3fkd", "", 1000)
    assert given.estimate is not None
    assert given.estimate["candidates"] == []
    (found,) = given.machines
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    _, again, why = read_paid(root, "demo-x3fkd", account=AwsAccount(max_attempts=1))
    assert again.machines == [found]
    assert why.startswith("AWS did not answer listing machines")
