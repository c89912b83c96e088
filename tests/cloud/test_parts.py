"""A run in two parts, each on machines of its own, and one on two machines at once, which is lost with one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]


def test_rows_are_written_on_machines_of_their_own_and_trained_on_elsewhere(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(compute=", rows_apart: true")
    wait_for(lambda: cloud.attempt(run_id, 1, "end"), "the end of the first part", timeout_s=900)
    assert cloud.attempt(run_id, 1, "end")["stop_reason"] == "part_done"
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint of the second part", timeout_s=900)
    kinds = [one.said["InstanceType"] for one in cloud.machines(run_id)]
    assert kinds == ["m6i.large"]  # the machine that wrote the rows is gone, and no other waits for it
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=900)
    view = cloud.status(run_id)
    assert [one["stop_reason"] for one in view["attempts"]] == ["part_done", "done"]
    assert cloud.attempt(run_id, 1, "claim")["placement"]["instance_type"] == "m6i.xlarge"
    wait_for(lambda: not cloud.machines(run_id), "end of the last machine", timeout_s=240)


def test_two_machines_that_work_together_are_lost_with_one_of_them_and_finish_elsewhere(
    box: CloudBox, cloud: Cloud
) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=60, compute=", num_nodes: 2")
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=1200)
    both = cloud.machines(run_id)
    addresses = cloud.attempt(run_id, 1, "claim")["addresses"]
    assert {one.address for one in both} == set(addresses)
    assert len(addresses) == 2
    (member,) = [one for one in both if one.address == addresses[1]]
    box.preempt(member)
    wait_for(lambda: cloud.attempt(run_id, 2, "claim"), "a second attempt", timeout_s=1200)
    assert member.region not in {one.region for one in cloud.machines(run_id)}
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=1200)
    view = cloud.status(run_id)
    assert [one["stop_reason"] for one in view["attempts"]][1:] == ["done"]
    assert view["attempts"][1]["base"]["stage"] == "train"
    wait_for(lambda: not cloud.machines(run_id), "end of the last machines", timeout_s=240)
