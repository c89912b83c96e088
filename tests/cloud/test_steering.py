"""Cancel leaves no machine; resume is refused while the run lives, and taken once it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]


def test_cancel_leaves_no_machine_and_only_then_is_a_resume_taken(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=150)
    wait_for(lambda: cloud.commits(run_id, "data/") >= 1, "rows of the first attempt", timeout_s=900)
    early = cloud.shell("alpaca-jobs", "resume", run_id, "--yes")
    assert early.returncode == 2
    assert "is alive: SkyPilot says" in early.stderr

    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=120)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
    assert view["attempts"][0]["stop_reason"] == "cancelled"  # by the node itself: it had its window

    resumed = cloud.shell("alpaca-jobs", "resume", run_id, "--yes", "--detach")
    assert resumed.returncode == 0, resumed.stderr
