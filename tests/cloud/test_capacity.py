"""No region has a machine: the run waits, and goes on when one has again; a cancel meanwhile leaves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]
REGIONS = ("us-east-1", "us-east-2", "us-west-2")


def test_a_run_whose_regions_are_all_gone_waits_and_goes_on_when_one_is_back(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch()
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
    box.refuse_capacity(run_id, *REGIONS)
    gone = cloud.lose(run_id).region
    wait_for(lambda: cloud.has_waited(run_id), "word that no region has a machine", timeout_s=600)
    assert cloud.status(run_id)["state"] in ("waiting", "starting")  # starting: it is just asking again
    back = next(region for region in reversed(REGIONS) if region != gone)
    box.refuse_capacity(run_id, *(region for region in REGIONS if region != back))
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=900)
    view = cloud.status(run_id)
    assert view["state"] == "done"
    assert [one["place"] for one in view["attempts"]] == [f"aws/{gone}", f"aws/{back}"]
    wait_for(lambda: not cloud.machines(run_id), "end of the last machine", timeout_s=240)


def test_a_cancel_while_the_run_is_recovered_leaves_no_machine(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch(epochs=150)
    wait_for(lambda: cloud.commits(run_id, "data/") >= 1, "rows of the first attempt", timeout_s=900)
    gone = cloud.lose(run_id)
    (second,) = wait_for(lambda: cloud.machines(run_id), "another machine", timeout_s=600)
    assert second.region != gone.region
    assert not cloud.attempt(run_id, 2, "claim")  # it has been bought, and nothing of ours runs on it yet
    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    wait_for(lambda: not cloud.machines(run_id), f"end of {second.instance}", timeout_s=120)
    view = cloud.status(run_id)
    assert (view["state"], view["exit_code"]) == ("stopped", 130)
