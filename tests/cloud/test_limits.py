"""Limits on a cloud: a run stops before its line, with its state committed and no machine left, and can be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]
MAX_USD = 0.005  # ten minutes of the cheapest machine


def test_a_run_stopped_by_its_deadline_goes_on_with_another_until_it_is_cancelled(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=10_000, limits="deadline_h: 0.1")
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=1200)
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=240)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 4)
    assert view["attempts"][-1]["stop_reason"] == "deadline"
    assert view["newest_commit"] is not None

    resumed = cloud.shell("alpaca-jobs", "resume", run_id, "--deadline", "2", "--yes", "--detach")
    assert resumed.returncode == 0, resumed.stderr
    number = len(view["attempts"]) + 1
    wait_for(lambda: cloud.attempt(run_id, number, "base"), "the next attempt at work", timeout_s=900)
    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=120)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
    assert view["attempts"][-1]["stop_reason"] == "cancelled"  # by the node itself: it had its window


def test_a_budget_stops_the_run_before_it_is_crossed(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=10_000, limits=f"max_usd: {MAX_USD}")
    early = cloud.shell("alpaca-jobs", "resume", run_id, "--yes")
    assert early.returncode == 2
    assert "is alive: SkyPilot says" in early.stderr
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=1200)
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=240)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 4)
    (attempt,) = view["attempts"]
    assert attempt["stop_reason"] == "budget"
    assert 0 < attempt["cost_usd"] <= MAX_USD
    assert view["newest_commit"] is not None
