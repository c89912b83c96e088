"""What the laptop was needed for: its API server and controller die with the machine, or never had our plugin.

Each of these has the box to itself: nobody else's run would survive its server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from box import CloudBox
    from conftest import Cloud

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(2400)]


def test_a_server_that_dies_with_the_machine_pays_for_nothing_and_goes_on_when_it_is_back(
    box: CloudBox, cloud: Cloud
) -> None:
    from processes import wait_for

    run_id = cloud.launch()
    wait_for(lambda: cloud.commits(run_id, "checkpoints/") >= 1, "a checkpoint", timeout_s=900)
    box.kill_server()
    gone = cloud.lose(run_id)
    wait_for(lambda: not cloud.machines(run_id), "end of the machine", timeout_s=60)
    box.start_server()

    def is_over() -> bool:
        assert len(cloud.machines(run_id)) <= 1  # never two machines for one run
        return bool(cloud.keys(run_id, "reports/attempt"))

    wait_for(is_over, "the report", timeout_s=1200)
    view = cloud.status(run_id)
    assert [one["stop_reason"] for one in view["attempts"]] == ["lost", "done"]
    first, second = (one["place"] for one in view["attempts"])
    assert first == f"aws/{gone.region}" != second  # it is remembered
    wait_for(lambda: not cloud.machines(run_id), "end of the last machine", timeout_s=240)


def test_a_server_without_our_plugin_warns_in_words_and_recovers_in_its_own_way(box: CloudBox, cloud: Cloud) -> None:
    from processes import wait_for

    box.kill_server()
    box.set_plugin(installed=False)
    box.start_server()
    try:
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
        wait_for(lambda: not cloud.machines(run_id), "end of the last machine", timeout_s=120)
        view = cloud.status(run_id)
        # The second by the node itself: a cancel leaves it a window to save in.
        assert [one["stop_reason"] for one in view["attempts"]] == ["lost", "cancelled"]
        assert view["exit_code"] == 130
    finally:
        box.kill_server()
        box.set_plugin(installed=True)
        box.start_server()
