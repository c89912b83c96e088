"""The drill on a cloud, as far as a pretend account alone can show it; tests/cloud runs it whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alpaca_jobs.spec import JobSpec
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_machines import machines_of_run
from cluster.errors import WrongInput
from cluster.events import Event
from cluster.launch.cloud_drill import CloudDrillResult, CloudKill, check_drillable, terminate_run
from cluster.plan import LaunchPlan, Placement, Pricing

RUN = "demo-x3fkd"


def a_plan(infra: str = "aws") -> LaunchPlan:
    body = {
        "name": "demo", "store": "s3://b", "data": {"num_rows": 8, "teacher": "offline"},
        "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": [infra], "workers": 1},
    }  # fmt: skip
    place = Placement(infra, "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 1)
    return LaunchPlan(RUN, JobSpec.model_validate(body), "s3://b", (place,), 1, "0+test")


def test_only_machines_with_the_runs_own_label_are_terminated(aws: str) -> None:
    account = AwsAccount()
    names = {}
    for run_id in (RUN, "demo-x3fkf"):
        label = [{"ResourceType": "instance", "Tags": [{"Key": "alpaca-jobs-run", "Value": run_id}]}]
        answer = account.client("ec2", "us-east-1").run_instances(
            ImageId="ami-785db401", MinCount=1, MaxCount=1, InstanceType="m6i.large", TagSpecifications=label
        )
        names[run_id] = answer["Instances"][0]["InstanceId"]
    saved = Event("2026-11-21T12:00:00.000Z", "save", 1, "node", {"position": 6, "committed": True})
    kill = terminate_run(a_plan(), account, saved)
    assert kill is not None
    assert (kill.attempt, kill.place, kill.machines, kill.step) == (1, "aws/us-east-1", (names[RUN],), 6)
    states = {run_id: machines_of_run(account, run_id, ["us-east-1"])[0].state for run_id in names}
    assert states == {RUN: "terminated", "demo-x3fkf": "running"}
    assert terminate_run(a_plan(), account, saved) is None  # nothing of it runs any more


def test_it_passes_only_if_the_run_came_back_elsewhere_as_often_as_it_was_killed() -> None:
    kill = CloudKill(1, "aws/us-east-1", ("i-1",), 6, "2026-11-21T12:00:00.000Z")
    good = CloudDrillResult(RUN, 1, (kill,), ("aws/us-east-1", "aws/us-east-2"), (2,), (90.0,), "done")
    assert good.is_good
    assert good.to_json()["is_good"] is True
    for wrong in (
        replace(good, outcome="budget"),
        replace(good, wanted=2),
        replace(good, places=("aws/us-east-1", "aws/us-east-1")),
        replace(good, back_s=(None,)),
    ):
        assert not wrong.is_good


def test_what_cannot_be_drilled_is_refused_before_anything_starts() -> None:
    check_drillable(a_plan(), 1)
    with pytest.raises(WrongInput, match="terminates machines of AWS only, and the plan goes to gcp"):
        check_drillable(a_plan("gcp"), 1)
    with pytest.raises(WrongInput, match="--kills is 0, but a number from 1 to 5"):
        check_drillable(a_plan(), 0)
