"""Rows are written on a machine of their own, and the one that trains on them is told that it will be taken away.

It saves what it has, and leaves in time; the saved step is the last that was made. SkyPilot's API server and controller
die with it: nothing is paid for until they are back, and then they go on. Their user cancels while the next machine is
made ready: nothing is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox, Machine
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]
WINDOW_S = 120.0  # what AWS gives


def test_a_machine_leaves_in_time_its_server_dies_with_it_and_comes_back_and_a_cancel_of_the_recovery_leaves_none(
    box: CloudBox, cloud: Cloud
) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=400, compute=", rows_apart: true")
    wait_for(lambda: cloud.attempt(run_id, 1, "end"), "the end of the first part", timeout_s=900)
    assert cloud.attempt(run_id, 1, "end")["stop_reason"] == "part_done"
    assert cloud.attempt(run_id, 1, "claim")["placement"]["instance_type"] == "m6i.xlarge"
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint of the second part", timeout_s=900)
    (first,) = cloud.machines(run_id)  # the one that wrote the rows is gone
    assert first.said["InstanceType"] == "m6i.large"

    box.announce(first, window_s=WINDOW_S)
    end = wait_for(lambda: cloud.attempt(run_id, 2, "end"), "the node's own last word", timeout_s=WINDOW_S)
    assert (end["stop_reason"], end["by"]) == ("preempted", "node")
    last_step = max(event["step"] for event in cloud.events(run_id) if event["kind"] == "step")
    assert cloud.commits(run_id, f"checkpoints/step-{last_step:08d}/") == 1  # no step will be made twice

    def another() -> list[Machine]:
        return [one for one in cloud.machines(run_id) if one.instance != first.instance]

    box.kill_server()
    box.preempt(first)
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=60)
    box.serve()
    (second,) = wait_for(another, "another machine", timeout_s=600)
    assert second.region != first.region
    assert not cloud.attempt(run_id, 3, "claim")  # it has been bought, and nothing of ours runs on it yet
    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    bills = cloud.settle(run_id)
    assert {first.instance, second.instance} < {one.instance for one in bills}
    cloud.receipt(run_id, bills)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
