"""A run on two machines that work together, lost with one of them: the other goes too; the next two are elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_two_machines_that_work_together_are_lost_with_one_of_them_and_finish_elsewhere(
    box: CloudBox, cloud: Cloud
) -> None:
    from processes import wait_for

    run_id = cloud.launch(workers=2, compute=", num_nodes: 2")
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
    both = cloud.machines(run_id)
    addresses = cloud.attempt(run_id, 1, "claim")["addresses"]
    assert {one.address for one in both} == set(addresses), cloud.status(run_id)["attempts"]  # nobody was lost so far
    assert len(addresses) == 2
    (member,) = [one for one in both if one.address == addresses[1]]
    box.preempt(member)
    wait_for(lambda: cloud.attempt(run_id, 2, "claim"), "a second attempt", timeout_s=900)
    assert member.region not in {one.region for one in cloud.machines(run_id)}
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=900)
    view = cloud.status(run_id)
    assert [one["stop_reason"] for one in view["attempts"]][1:] == ["done"]
    assert view["attempts"][1]["base"]["stage"] == "train"
    cloud.receipt(run_id, cloud.settle(run_id, num_nodes=2))
