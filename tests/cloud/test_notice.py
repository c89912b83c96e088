"""A machine that is told by its metadata service that it will be taken away saves what it has, and leaves in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]
WINDOW_S = 120.0  # what AWS gives


def test_a_machine_with_notice_saves_and_leaves_and_no_step_is_made_twice(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=400)
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
    (machine,) = cloud.machines(run_id)
    box.announce(machine, window_s=WINDOW_S)
    end = wait_for(lambda: cloud.attempt(run_id, 1, "end"), "the node's own last word", timeout_s=WINDOW_S)
    assert (end["stop_reason"], end["by"]) == ("preempted", "node")
    box.preempt(machine)
    wait_for(lambda: cloud.attempt(run_id, 2, "claim"), "a second attempt", timeout_s=900)
    (second,) = cloud.machines(run_id)
    assert second.region != machine.region
    wait_for(lambda: cloud.attempt(run_id, 2, "base"), "the second attempt at work", timeout_s=600)
    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=120)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
    assert view["attempts"][1]["stop_reason"] == "cancelled"  # by the node itself: it had its window
    report = cloud.read(run_id, "reports/attempt-000002.json")
    assert report["stop_reasons"] == ["preempted", "cancelled"]
    assert report["lost_steps"] == [0]
