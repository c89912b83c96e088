"""Limits on a cloud: a run stops before its line, with its state committed and no machine left, and can be resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]
MAX_USD = 0.003  # six minutes of the cheapest machine, from its boot
KEY = "sk-box-0123456789abcdef0123456789abcdef"


def test_a_deadline_that_has_come_buys_nothing_and_a_budget_stops_what_is_resumed(
    box: CloudBox, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from processes import wait_for

    monkeypatch.setitem(box.environ, "SLOW_KEY", KEY)
    address = box.start_teacher(latency_s=5)  # a run that takes long, and hardly any of this computer
    teacher = f"model: offline-demo, base_url: {address}, api_key_env: SLOW_KEY"
    prices = "price_per_million_input_usd: 0, price_per_million_output_usd: 0"
    run_id = cloud.launch(
        num_rows=5000, teacher=f"{{{teacher}, {prices}}}", limits="deadline_h: 0.01", secrets="SLOW_KEY"
    )
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
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=600)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 4)
    (attempt,) = view["attempts"]
    assert attempt["stop_reason"] == "budget"
    assert 0 < attempt["cost_usd"] <= MAX_USD
    assert cloud.commits(run_id, "data/") >= 1
    assert not [key for key in cloud.keys(run_id, "") if KEY.encode() in cloud.read_bytes(key)]
    logs = (path for path in (box.home / "sky_logs").rglob("*") if path.is_file())
    assert not [path for path in logs if KEY.encode() in path.read_bytes()]
