"""The whole path on a cloud: launched from the command line on spot, lost without a word, finished elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]


def test_a_spot_run_that_is_lost_is_finished_in_another_region_with_the_same_bits(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    run_id = cloud.launch()

    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 2, "two checkpoints of the first attempt", timeout_s=900)
    box.refuse_capacity(run_id, "us-east-2")  # the next best has nothing to give, so it has to be the third
    assert cloud.lose(run_id).region == "us-east-1"  # the cheapest

    wait_for(lambda: cloud.keys(run_id, "attempts/000002.claim.json"), "a second attempt", timeout_s=900)
    (second,) = box.machines(run_id, states=("running",))
    assert second.region == "us-west-2"
    wait_for(lambda: cloud.keys(run_id, "reports/attempt"), "the report", timeout_s=900)
    view = cloud.status(run_id)
    assert view["state"] == "done"
    assert [one["place"] for one in view["attempts"]] == ["aws/us-east-1", "aws/us-west-2"]
    assert [one["stop_reason"] for one in view["attempts"]] == ["lost", "done"]
    assert view["attempts"][1]["base"]["stage"] == "train"  # it went on from a checkpoint, not from the start
    wait_for(lambda: not cloud.machines(run_id), "end of the last machine", timeout_s=240)

    here = cloud.shell("alpaca-jobs", "launch", cloud.job("local"), "--yes", "--json")
    assert here.returncode == 0, here.stderr
    for name, run in (("there", run_id), ("here", json.loads(here.stdout)["run_id"])):
        exported = cloud.shell("alpaca-jobs", "export", run, "--to", str(cloud.folder / name))
        assert exported.returncode == 0, exported.stderr
    there, here_too = ((cloud.folder / name / "model.safetensors").read_bytes() for name in ("there", "here"))
    assert there == here_too
