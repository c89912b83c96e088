"""Machines of ours in a pretend account of AWS: found in every region, by their tags, and taken down."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from alpaca_jobs.spec import JobSpec
from checkpoints.store import Store
from cluster.cloud import machine_records
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_machines import controllers, machines_of_ours, machines_of_run, regions_of, terminate
from cluster.cloud.machine_records import keep_gone, keep_in_background, kept_machines
from cluster.errors import CloudError, NoCredentials
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.runs.machines import CloudMachine

AMI = "ami-785db401"


def start(account: AwsAccount, region: str, *, spot: bool = True, **tags: str) -> str:
    """Start a machine; returns its id."""
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
    named = [{"Key": key.replace("_", "-"), "Value": value} for key, value in tags.items()]
    answer = account.client("ec2", region).run_instances(
        ImageId=AMI, MinCount=1, MaxCount=1, InstanceType="m6i.large",
        TagSpecifications=[{"ResourceType": "instance", "Tags": named}], **market,
    )  # fmt: skip
    return str(answer["Instances"][0]["InstanceId"])


@pytest.fixture
def account(aws: str) -> AwsAccount:
    return AwsAccount()


def test_a_runs_machines_are_found_in_all_its_regions_with_the_times_that_aws_bills(account: AwsAccount) -> None:
    first = start(account, "us-east-1", alpaca_jobs_run="demo-a", skypilot_cluster_name="demo-a-1")
    second = start(account, "us-west-2", alpaca_jobs_run="demo-a", spot=False)
    start(account, "us-east-1", alpaca_jobs_run="demo-b")
    time.sleep(1.1)
    account.client("ec2", "us-east-1").terminate_instances(InstanceIds=[first])
    found = machines_of_run(account, "demo-a", ["us-east-1", "us-west-2"])
    one, other = sorted(found, key=lambda machine: machine.region)
    assert (one.instance_id, one.region, one.cluster, one.state) == (first, "us-east-1", "demo-a-1", "terminated")
    assert (other.instance_id, other.pricing, other.ended_at_s) == (second, Pricing.ON_DEMAND, None)
    assert one.pricing is Pricing.SPOT
    assert one.ended_at_s is not None
    assert 0 <= one.seconds(now=0) < 30
    assert (one.is_billed, other.is_billed) == (False, True)
    assert CloudMachine.from_json({**one.to_json(), "nonce": "x"}) == one


def test_a_machine_that_turned_itself_off_is_not_taken_for_one_that_is_paid_for_until_now(account: AwsAccount) -> None:
    from botocore.stub import Stubber

    began = datetime(2026, 11, 20, 18, 0, tzinfo=UTC)
    said = {"off": ("stopped", "User initiated"), "gone": ("terminated", ""), "on": ("running", "")}
    said["ended"] = ("terminated", "User initiated (2026-11-20 20:00:00 GMT)")
    machines = [
        {"InstanceId": name, "InstanceType": "m6i.large", "LaunchTime": began, "State": {"Name": state},
         "StateTransitionReason": why}
        for name, (state, why) in said.items()
    ]  # fmt: skip
    with Stubber(account.client("ec2", "us-east-1")) as answers:
        answers.add_response("describe_instances", {"Reservations": [{"Instances": machines}]})
        found = machines_of_run(account, "demo-a", ["us-east-1"])
    assert {one.instance_id: one.ended_at_s for one in found} == {"on": None, "ended": began.timestamp() + 7200}


def test_whatever_still_exists_is_found_wherever_it_is_and_taken_down(account: AwsAccount) -> None:
    ours = start(account, "us-west-2", alpaca_jobs_run="demo-a")
    watching = start(account, "us-east-2", skypilot_cluster_name="sky-jobs-controller-abc")
    gone = start(account, "us-east-1", alpaca_jobs_run="demo-b")
    start(account, "us-east-1", skypilot_cluster_name="somebody-elses")
    account.client("ec2", "us-east-1").terminate_instances(InstanceIds=[gone])
    assert "us-west-2" in regions_of(account)  # all of them are looked through where none is named
    places = ["us-east-1", "us-east-2", "us-west-2"]
    found = machines_of_ours(account, places)
    assert {(one.instance_id, one.region) for one in found} == {(ours, "us-west-2"), (watching, "us-east-2")}
    assert [one.instance_id for one in controllers(account, ["us-east-2"])] == [watching]
    terminate(account, found)
    terminate(account, found)  # again without harm
    assert machines_of_ours(account, places) == []


def test_who_is_not_signed_in_is_told_how_to(account: AwsAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    assert account.identity() == "123456789012"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(NoCredentials, match=r"none were found\. Set them with `aws configure`"):
        AwsAccount().identity()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("UnauthorizedOperation", CloudError, r"does not allow listing x \(UnauthorizedOperation\): no\. docs/CLOUDS"),
        ("ExpiredToken", NoCredentials, r"does not take these credentials for listing x \(ExpiredToken\)"),
        ("Throttling", CloudError, r"refused listing x \(Throttling\): no"),
    ],
)
def test_what_aws_refuses_is_said_in_words(account: AwsAccount, code: str, kind: type[CloudError], words: str) -> None:
    from botocore.exceptions import ClientError

    def refuse() -> Any:
        raise ClientError({"Error": {"Code": code, "Message": "no."}}, "DescribeX")

    with pytest.raises(kind, match=words) as caught:
        account.call("listing x", refuse)
    assert caught.value.code == code
    assert account.call("listing x", refuse, absent=(code,), default=[]) == []


def test_an_address_where_nobody_answers_is_said(account: AwsAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(CloudError, match="did not answer asking who is signed in"):
        AwsAccount(max_attempts=1).identity()


def test_a_lost_machines_record_is_kept_at_the_loss_and_later_ones_do_not_change_it(account: AwsAccount) -> None:
    lost, _ = (
        start(account, "us-east-1", alpaca_jobs_run="demo-a"),
        start(account, "us-east-1", alpaca_jobs_run="demo-a"),
    )
    account.client("ec2", "us-east-1").terminate_instances(InstanceIds=[lost])
    store = Store.open("memory://machine-records").child("demo-a")
    job = JobSpec.model_validate(
        {"name": "demo", "data": {"num_rows": 8, "teacher": "offline"}, "train": {"model": "tiny-llama"},
         "compute": {"infra": "aws", "workers": 1}, "store": "s3://b"}
    )  # fmt: skip
    place = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 1)
    plan = LaunchPlan("demo-a", job, "s3://b", (place, replace(place, infra="gcp", region="mars")), 1, "0+test")
    keep_in_background(store, plan, account).join(30)
    assert list(kept_machines(store)) == [lost]  # what still runs has no end to keep
    kept = kept_machines(store)[lost]
    assert kept.ended_at_s is not None
    keep_gone(store, [replace(kept, ended_at_s=kept.ended_at_s + 60)])
    assert kept_machines(store) == {lost: kept}


def test_a_cloud_that_does_not_answer_costs_a_record_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> list[CloudMachine]:
        raise CloudError("AWS refused listing machines")

    monkeypatch.setattr(machine_records, "machines_of_run", refuse)
    store = Store.open("memory://no-machine-records").child("demo-a")
    place = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 1)
    job = JobSpec.model_validate(
        {"name": "demo", "data": {"num_rows": 8, "teacher": "offline"}, "train": {"model": "tiny-llama"},
         "compute": {"infra": "aws", "workers": 1}, "store": "s3://b"}
    )  # fmt: skip
    keep_in_background(store, LaunchPlan("demo-a", job, "s3://b", (place,), 1, "0+test"), AwsAccount()).join(30)
    assert kept_machines(store) == {}
    assert "were not kept now: AWS refused" in caplog.text
