"""`drill --infra aws`: a user terminates a machine of his own on purpose, and sees the run come back elsewhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.together, pytest.mark.timeout(2400)]


def test_a_drill_terminates_its_own_machine_and_the_run_is_back_in_another_region(box: CloudBox, cloud: Cloud) -> None:
    box.client("s3").create_bucket(Bucket="runs")
    drilled = cloud.shell(
        "alpaca-jobs", "drill", cloud.job("aws", epochs=60), "--infra", "aws", "--max-usd", "1", "--yes", "--json",
        timeout=1800,
    )  # fmt: skip
    assert drilled.returncode == 0, drilled.stderr
    result = json.loads(drilled.stdout)
    (kill,) = result["kills"]
    assert result["places"] == ["aws/us-east-1", "aws/us-east-2"]
    assert kill["place"] == "aws/us-east-1"
    assert result["outcome"] == "done"
    assert "TERMINATED" in drilled.stderr
