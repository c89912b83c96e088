"""Limits on a cloud: a run stops before its line, with its state committed and no machine left, and can be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]
MAX_USD = 0.003  # six minutes of the cheapest machine, from its boot


def test_a_deadline_that_has_come_buys_nothing_and_a_budget_stops_what_is_resumed(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=10_000, limits="deadline_h: 0.01")
    wait_for(lambda: cloud.keys(run_id, "reports/attempt-000000"), "the controller's last word", timeout_s=600)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"], view["attempts"]) == ("stopped", 4, [])
    assert not box.machines(run_id, states=("pending", "running", "terminated"))

    resumed = cloud.shell(
        "alpaca-jobs", "resume", run_id, "--deadline", "2", "--budget", str(MAX_USD), "--yes", "--detach"
    )
    assert resumed.returncode == 0, resumed.stderr
    wait_for(lambda: cloud.machines(run_id), "a machine", timeout_s=600)
    early = cloud.shell("alpaca-jobs", "resume", run_id, "--yes")
    assert early.returncode == 2
    assert "is alive: SkyPilot says" in early.stderr
    wait_for(lambda: cloud.keys(run_id, "reports/attempt-000001"), "the report", timeout_s=1200)
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=240)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 4)
    (attempt,) = view["attempts"]
    assert attempt["stop_reason"] == "budget"
    assert 0 < attempt["cost_usd"] <= MAX_USD
    assert view["newest_commit"] is not None
