"""SkyPilot's default: the job controller is a machine of its own. The laptop may be shut, and the run goes on."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]
CONTROLLER = "sky-jobs-controller"


def test_a_controller_machine_recovers_by_our_strategy_while_the_laptop_is_off(box: CloudBox, cloud: Cloud) -> None:
    from bills import bill_of
    from processes import wait_for

    box.serve(own_controller=True)
    try:
        run_id = cloud.launch()
        (controller,) = box.machines(CONTROLLER)
        wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
        box.kill_server()
        gone = cloud.lose(run_id)
        wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=1200)
        bills = cloud.settle(run_id)
        view = cloud.status(run_id)
        assert (view["state"], [one["stop_reason"] for one in view["attempts"]]) == ("done", ["lost", "done"])
        first, second = (one["place"] for one in view["attempts"])
        assert first == f"aws/{gone.region}" != second
        started = [one["number"] for one in cloud.events(run_id) if one.get("state") == "started"]
        assert started[-1] == 2  # our strategy says so; without it, nodes take their numbers themselves
        assert [one.instance for one in box.machines(CONTROLLER)] == [controller.instance]
        lines = cloud.receipt(run_id, bills)["lines"]
        (line,) = [one for one in lines if one["what"] == "controller"]
        ended = max(datetime.fromisoformat(one["ended_at"]) for one in view["attempts"])
        bill = bill_of(controller.region, controller.said)  # which goes on; the run's share of it ends with the run
        assert line["usd"] == pytest.approx(bill.usd(now_s=ended.timestamp()), rel=0.01)
    finally:
        for machine in box.machines(CONTROLLER):
            box.preempt(machine)
