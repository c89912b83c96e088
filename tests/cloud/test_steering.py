"""Steering a run on a cloud from the command line: cancel leaves no machine, resume goes on, under the same id."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from checkpoints.store import Store

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_cancel_leaves_no_machine_and_resume_finishes_the_run(box: CloudBox, cloud: Cloud) -> None:
    from box import wait_for

    box.refuse_capacity()
    run_id = cloud.launch()
    store = Store.open("s3://runs/here").child(run_id)
    wait_for(lambda: cloud.commits(store, "data/") >= 1, "rows of the first attempt", timeout_s=600)
    early = cloud.shell("alpaca-jobs", "resume", run_id, "--yes")
    assert early.returncode == 2
    assert "is alive: SkyPilot says RUNNING" in early.stderr

    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for(lambda: not box.instances(), "end of the machine", timeout_s=120)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
    assert view["attempts"][0]["stop_reason"] == "cancelled"  # by the node itself: it had its window

    resumed = cloud.shell("alpaca-jobs", "resume", run_id, "--yes", "--json", timeout=900)
    assert resumed.returncode == 0, resumed.stderr
    view = cloud.status(run_id)
    assert view["state"] == "done"
    assert [one["stop_reason"] for one in view["attempts"]] == ["cancelled", "done"]
    assert view["attempts"][1]["base"] is not None
    wait_for(lambda: not box.instances(), "end of the last machine", timeout_s=240)
