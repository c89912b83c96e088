"""The whole path on a cloud: launched on spot by the command line, its machine terminated, finished elsewhere.

When it is terminated no region has another one: the run waits, and goes on when one has again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_drilled_spot_run_waits_for_a_machine_and_ends_elsewhere_with_the_bits_of_one_that_nobody_disturbed(
    box: CloudBox, cloud: Cloud
) -> None:
    from account import REGIONS
    from processes import wait_for

    by_price = tuple(REGIONS)
    box.client("s3").create_bucket(Bucket="runs")
    command = ("drill", cloud.job("aws", workers=2), "--infra", "aws", "--max-usd", "1", "--yes", "--json")
    drill = cloud.begin("alpaca-jobs", *command)
    bought = wait_for(lambda: box.machines("demo-"), "a machine", timeout_s=600)[0]
    assert bought.region == by_price[0]
    run_id = next(tag["Value"] for tag in bought.said["Tags"] if tag["Key"] == "alpaca-jobs-run")
    claim = wait_for(lambda: cloud.attempt(run_id, 1, "claim"), "the node at work", timeout_s=900)
    box.refuse_capacity(run_id, *by_price)
    wait_for(lambda: cloud.has_waited(run_id), "word that no region has a machine", timeout_s=900)
    assert cloud.status(run_id)["state"] in ("waiting", "starting")  # starting: it is just asking again
    gone = claim["placement"]["region"]
    back = next(region for region in reversed(by_price) if region != gone)
    box.refuse_capacity(run_id, *(region for region in by_price if region != back))

    exit_code, progress = drill.wait(timeout=1200), (cloud.folder / "err").read_text()
    assert exit_code == 0, progress
    assert "TERMINATED" in progress
    result = json.loads((cloud.folder / "out").read_text())
    assert (result["run_id"], result["outcome"]) == (run_id, "done")
    assert result["places"] == [f"aws/{gone}", f"aws/{back}"]
    assert [one["place"] for one in result["kills"]] == [f"aws/{gone}"]

    view = cloud.status(run_id)
    assert view["state"] == "done"
    assert [one["stop_reason"] for one in view["attempts"]] == ["lost", "done"]
    assert view["attempts"][1]["base"]["stage"] == "train"  # it went on from a checkpoint, not from the start
    receipt = cloud.receipt(run_id, cloud.settle(run_id))
    machines = {line["what"]: line["usd"] for line in receipt["lines"] if line["what"].startswith("attempt")}
    assert machines.keys() == {"attempt 1", "attempt 2"}
    assert receipt["unknown"] == []
    own = cloud.read(run_id, "reports/attempt-000002.json")["compute_usd"]
    assert own == pytest.approx(sum(machines.values()), rel=0.35)  # the run's records do not see the end of a machine

    here = cloud.shell("alpaca-jobs", "launch", cloud.job("local", workers=2), "--yes", "--json")
    assert here.returncode == 0, here.stderr
    for name, run in (("there", run_id), ("here", json.loads(here.stdout)["run_id"])):
        exported = cloud.shell("alpaca-jobs", "export", run, "--to", str(cloud.folder / name))
        assert exported.returncode == 0, exported.stderr
    there, here_too = ((cloud.folder / name / "model.safetensors").read_bytes() for name in ("there", "here"))
    assert there == here_too
