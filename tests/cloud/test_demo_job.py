"""The whole path on a cloud: launched on spot by the command line, its machine terminated, finished elsewhere."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]


def test_a_drilled_spot_run_is_finished_in_another_region_with_the_bits_of_one_that_nobody_disturbed(
    box: CloudBox, cloud: Cloud
) -> None:
    from processes import wait_for

    box.client("s3").create_bucket(Bucket="runs")
    drilled = cloud.shell(
        "alpaca-jobs", "drill", cloud.job("aws"), "--infra", "aws", "--max-usd", "1", "--yes", "--json", timeout=2000
    )
    assert drilled.returncode == 0, drilled.stderr
    assert "TERMINATED" in drilled.stderr
    result = json.loads(drilled.stdout)
    run_id, (kill,) = result["run_id"], result["kills"]
    assert cloud.bought(run_id)[0].region == "us-east-1"  # the cheapest
    first, second = result["places"]
    assert kill["place"] == first != second
    assert result["outcome"] == "done"

    view = cloud.status(run_id)
    assert view["state"] == "done"
    assert [one["stop_reason"] for one in view["attempts"]] == ["lost", "done"]
    assert view["attempts"][1]["base"]["stage"] == "train"  # it went on from a checkpoint, not from the start
    wait_for(lambda: not cloud.machines(run_id), "end of the last machine", timeout_s=240)
    receipt_agrees_with_the_cloud(box, cloud, run_id)

    here = cloud.shell("alpaca-jobs", "launch", cloud.job("local"), "--yes", "--json")
    assert here.returncode == 0, here.stderr
    for name, run in (("there", run_id), ("here", json.loads(here.stdout)["run_id"])):
        exported = cloud.shell("alpaca-jobs", "export", run, "--to", str(cloud.folder / name))
        assert exported.returncode == 0, exported.stderr
    there, here_too = ((cloud.folder / name / "model.safetensors").read_bytes() for name in ("there", "here"))
    assert there == here_too


def receipt_agrees_with_the_cloud(box: CloudBox, cloud: Cloud, run_id: str) -> None:
    """The receipt's machines are within 1 % of the seconds that the pretend AWS counts, at its catalog's price."""
    from account import INSTANCE_TYPES, REGIONS

    shown = cloud.shell("alpaca-jobs", "receipt", run_id, "--json")
    assert shown.returncode == 0, shown.stderr
    receipt = json.loads(shown.stdout)
    counted = 0.0
    for machine in box.machines(run_id, states=("terminated",)):
        ended = re.search(r"\((.*) UTC\)", machine.said["StateTransitionReason"])
        assert ended is not None
        until = datetime.strptime(ended[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        price = INSTANCE_TYPES[machine.said["InstanceType"]][3] * REGIONS[machine.region][3]
        counted += (until - machine.said["LaunchTime"]).total_seconds() / 3600 * price
    paid = {line["what"]: line["usd"] for line in receipt["lines"]}
    machines = sum(usd for what, usd in paid.items() if what.startswith(("attempt", "machines")))
    assert {"attempt 1", "attempt 2"} <= paid.keys()
    assert machines == pytest.approx(counted, rel=0.01)
    assert receipt["unknown"] == []
    own = cloud.read(run_id, "reports/attempt-000002.json")["compute_usd"]
    assert own == pytest.approx(machines, rel=0.35)  # the run's own records do not see the end of a machine
