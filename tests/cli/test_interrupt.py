"""Ctrl-C at any time: what goes on is said, what has not begun leaves nothing."""

from __future__ import annotations

import secrets
import subprocess
import time
from typing import Any

import pytest

from cluster.process_tree import find_nodes

pytestmark = pytest.mark.process


def read_until(process: subprocess.Popen[str], text: str, *, timeout_s: float = 30.0) -> None:
    """Read stderr until a text has come."""
    assert process.stderr is not None
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if text in process.stderr.readline():
            return
    pytest.fail(f"{text!r} did not come")


def test_ctrl_c_while_following_leaves_the_run_and_says_how_to_come_back(quick: Any) -> None:
    quick.behaviour |= {"steps": 60}
    process = quick.start("launch", quick.job(), "--yes")
    read_until(process, "step ")
    left = quick.interrupt(process)
    assert left.returncode == 130
    run_id = quick.home.runs()[0].run_id
    assert f"{run_id} goes on without this terminal" in left.stderr
    assert f"alpaca-jobs logs -f {run_id}" in left.stderr
    assert f"alpaca-jobs cancel {run_id}" in left.stderr
    assert "Traceback" not in left.stderr
    assert quick("logs", "-f", run_id).returncode == 0


def test_ctrl_c_while_reading_logs_leaves_the_run(quick: Any) -> None:
    quick.behaviour |= {"steps": 400}
    run_id = quick.launch()
    process = quick.start("logs", "-f", run_id)
    assert process.stdout is not None
    process.stdout.readline()
    left = quick.interrupt(process)
    assert left.returncode == 130
    assert "goes on without this terminal" in left.stderr
    assert quick.home.run(run_id).supervisor_pid() is not None
    assert quick("cancel", run_id).returncode == 0


@pytest.mark.slow
def test_ctrl_c_while_waiting_for_a_cancel_stops_the_waiting_only(quick: Any) -> None:
    quick.behaviour |= {"steps": 4000, "deaf": True}
    run_id = quick.launch()
    quick.wait_for_step(run_id, 1)
    process = quick.start("cancel", run_id)
    read_until(process, "was asked to stop")
    left = quick.interrupt(process)
    assert left.returncode == 130
    quick.wait_until_over(run_id)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.5])
def test_ctrl_c_at_any_moment_leaves_a_run_that_was_told_or_nothing(quick: Any, after_s: float) -> None:
    quick.behaviour |= {"steps": 4000}
    name = f"quick-{secrets.token_hex(4)}"  # other tests may be running on this machine
    process = quick.start("launch", quick.job(name=name), "--yes")
    quick.wait_for((quick.folder / "started").exists)
    time.sleep(after_s)  # the moment is the point: import, plan, store, supervisor, following
    left = quick.interrupt(process)
    assert left.returncode == 130
    assert "Traceback" not in left.stderr
    runs = [folder.run_id for folder in quick.home.runs() if folder.session.exists()]
    if "goes on without this terminal" in left.stderr:
        assert quick("cancel", runs[0]).returncode == 0
        return
    assert runs == []
    files = [path for path in (quick.folder / "runs").rglob("*") if path.is_file()]
    assert files == []
    quick.wait_for(lambda: not [node for node in find_nodes() if node.run_id and node.run_id.startswith(name)], 10)


def test_ctrl_c_during_a_drill_stops_the_run_that_nobody_would_come_back_to(quick: Any) -> None:
    quick.behaviour |= {"steps": 4000}
    process = quick.start("drill", quick.job(checkpoints={"interval_steps": 4}), "--kills", "1")
    read_until(process, "| step ")
    left = quick.interrupt(process)
    assert left.returncode == 130
    run_id = quick.home.runs()[0].run_id
    assert f"{run_id} has stopped" in left.stderr
    assert quick.home.run(run_id).supervisor_pid() is None
    assert [node for node in find_nodes() if node.run_id == run_id] == []
