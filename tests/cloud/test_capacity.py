"""No region has a machine: the run waits, and goes on when one has again."""

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
