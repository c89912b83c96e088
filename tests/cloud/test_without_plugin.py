"""SkyPilot without our plugin in its server: less, and said in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_server_without_our_plugin_warns_in_words_and_recovers_in_its_own_way(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    box.serve(plugin=False)
    launched = cloud.try_launch(epochs=400)
    assert launched.returncode == 0, launched.stderr
    assert "SkyPilot's API server has no alpaca-jobs plugin" in launched.stderr
    run_id = launched.stdout.strip()
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
    cloud.lose(run_id)
    base = wait_for(lambda: cloud.attempt(run_id, 2, "base"), "the second attempt at work", timeout_s=900)["base"]
    assert (base["stage"], base["attempt"]) == ("train", 1)
    cancelled = cloud.shell("alpaca-jobs", "cancel", run_id)
    assert cancelled.returncode == 0, cancelled.stderr
    cloud.receipt(run_id, cloud.settle(run_id))
    view = cloud.status(run_id)
    # The second by the node itself: a cancel leaves it a window to save in.
    assert [one["stop_reason"] for one in view["attempts"]] == ["lost", "cancelled"]
    assert view["exit_code"] == 130
