"""A machine that is told by its metadata service that it will be taken away saves what it has, and leaves in time.

Its user cancels while the next machine is made ready: nothing is left, and the saved step is the last that was made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox, Machine
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]
WINDOW_S = 120.0  # what AWS gives


def test_a_machine_with_notice_saves_and_leaves_and_a_cancel_of_its_recovery_leaves_no_machine(
    box: CloudBox, cloud: Cloud
) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=400)
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
    (first,) = cloud.machines(run_id)
    box.announce(first, window_s=WINDOW_S)
    end = wait_for(lambda: cloud.attempt(run_id, 1, "end"), "the node's own last word", timeout_s=WINDOW_S)
    assert (end["stop_reason"], end["by"]) == ("preempted", "node")
    last_step = max(event["step"] for event in cloud.events(run_id) if event["kind"] == "step")
    assert cloud.commits(run_id, f"checkpoints/step-{last_step:08d}/") == 1  # no step will be made twice

    def another() -> list[Machine]:
        return [one for one in cloud.machines(run_id) if one.instance != first.instance]

    box.preempt(first)
    (second,) = wait_for(another, "another machine", timeout_s=600)
    assert second.region != first.region
    assert not cloud.attempt(run_id, 2, "claim")  # it has been bought, and nothing of ours runs on it yet
    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for(lambda: not cloud.machines(run_id), f"end of {second.instance}", timeout_s=120)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
