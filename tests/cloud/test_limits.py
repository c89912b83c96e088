"""Limits on a cloud: a run stops before its line, with its state committed and no machine left, and can be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]
MAX_USD = 0.003  # six minutes of the cheapest machine, from its boot
DEADLINE_H = 0.12  # from the launch; the machine leaves a minute and a quarter before


def test_a_deadline_that_has_come_buys_nothing_and_deadline_and_budget_stop_machines_at_work(
    box: CloudBox, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from account import SECRETS
    from processes import wait_for

    monkeypatch.setitem(box.environ, "SLOW_KEY", SECRETS["the teacher's key"].value)
    address = box.start_teacher(latency_s=5)  # runs that take long, and hardly any of this computer
    teacher = f"model: offline-demo, base_url: {address}, api_key_env: SLOW_KEY"
    prices = "price_per_million_input_usd: 0, price_per_million_output_usd: 0"
    slow: dict[str, Any] = {"num_rows": 5000, "teacher": f"{{{teacher}, {prices}}}", "secrets": "SLOW_KEY"}
    late = cloud.launch(**slow, limits=f"deadline_h: {DEADLINE_H}")  # works until then, beside the other
    run_id = cloud.launch(**slow, limits="deadline_h: 0.01")
    wait_for(lambda: cloud.keys(run_id, "reports/attempt-000000"), "the controller's last word", timeout_s=600)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"], view["attempts"]) == ("stopped", 4, [])
    assert not box.machines(run_id, states=("pending", "running", "terminated"))

    wait_for(lambda: cloud.attempt(late, 1, "claim"), "the node at work", timeout_s=900)  # one set-up at a time
    resumed = cloud.shell(
        "alpaca-jobs", "resume", run_id, "--deadline", "2", "--budget", str(MAX_USD), "--yes", "--detach"
    )
    assert resumed.returncode == 0, resumed.stderr
    wait_for(lambda: cloud.machines(run_id), "a machine", timeout_s=600)
    early = cloud.shell("alpaca-jobs", "resume", run_id, "--yes")
    assert early.returncode == 2
    assert "is alive: SkyPilot says" in early.stderr
    assert stopped(cloud, late, by="deadline")["cost_usd"] > 0
    assert 0 < stopped(cloud, run_id, by="budget")["cost_usd"] <= MAX_USD


def stopped(cloud: Cloud, run_id: str, *, by: str) -> dict[str, Any]:
    """Wait until a limit has ended a run at work; its one attempt."""
    from processes import wait_for

    wait_for(lambda: cloud.keys(run_id, "reports/attempt-000001"), "the report", timeout_s=1200)
    cloud.receipt(run_id, cloud.settle(run_id))
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 4)
    (attempt,) = view["attempts"]
    assert attempt["stop_reason"] == by
    assert cloud.commits(run_id, "data/") >= 1
    return dict(attempt)
