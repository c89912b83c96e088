"""An attempt that is still there after its window is ended, with the reason of the notice; others are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from cluster.exits import NODE_EXITS, Notice
from cluster.node import main
from cluster.node.attempt_context import Interruption
from cluster.node.failures import Failure
from cluster.node.hard_end import HardEnd
from cluster.recovery import StopReason

# A node whose stages hear of no notice: what a step or an export that hangs looks like from outside.
HANGING_NODE = """
import json, sys, threading, time
from pathlib import Path
from cluster.exits import Notice
from cluster.node import hard_end, main
from cluster.recovery import StopReason
main.run_stages = lambda ctx: (ctx.marker.reached("train", 5), time.sleep(600))
hard_end.HardEnd.__init__.__kwdefaults__["after_window_s"] = 0.2
class Guard:
    def __init__(self, give_notice, leave):
        give_notice(Notice(StopReason.BUDGET, 0.5))
    def stop(self):
        pass
uri, scratch, placement = sys.argv[1:]
main.run_node(main.NodeArguments(
    uri, "run", 1, json.loads(placement), Path(scratch), guard=Guard,
    outstayed=lambda reason: Path(scratch, "gone").write_text(reason.value),
))
"""


def test_a_node_that_hangs_is_ended_with_the_limits_reason_and_says_so(tmp_path: Path) -> None:
    store = Store.open(f"file://{tmp_path}/store").child("run")
    job = {"name": "demo", "data": {"num_rows": 8, "teacher": "offline"}, "compute": {"workers": 1},
           "train": {"model": "tiny-llama"}}  # fmt: skip
    placement = {"infra": "local", "region": "a", "zone": None, "instance_type": "process", "pricing": "spot",
                 "price_per_hour_usd": 0.0, "num_nodes": 1}  # fmt: skip
    store.put_once("job.json", {"job": job, "candidates": [placement]})
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGING_NODE, f"file://{tmp_path}/store", str(tmp_path / "s"), json.dumps(placement)],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == NODE_EXITS[StopReason.BUDGET], done.stderr
    assert time.monotonic() - began < 90
    (record,) = AttemptLog(store, LAYOUT).records()
    assert record.end is not None
    assert record.end["stop_reason"] == "budget"
    assert "still working" in record.end["detail"]
    assert record.end["reached"] == ["train", 5], "status and report read it when the events of its steps are long gone"
    assert (tmp_path / "s" / "gone").read_text() == "budget"


class Ended:
    """Takes what a hard end does."""

    def __init__(self) -> None:
        self.interruption = Interruption()
        self.done: list[object] = []
        self.over = threading.Event()
        self.hard_end = HardEnd(
            self.interruption, record=self._record, gone=self.done.append, exit=self._exit, after_window_s=0.1
        )  # fmt: skip

    def _record(self, failure: Failure) -> None:
        self.done.append(failure.reason)
        raise OSError("the store is away")  # which keeps nobody here

    def _exit(self, code: int) -> None:
        self.done.append(code)
        self.over.set()


@pytest.mark.parametrize("reason", [StopReason.BUDGET, StopReason.DEADLINE, StopReason.CANCELLED])
def test_the_end_is_recorded_then_the_rest_is_said_and_the_process_goes(reason: StopReason) -> None:
    ended = Ended()
    ended.hard_end.start()
    ended.interruption.notify(Notice(reason, 0.1))
    assert ended.over.wait(10)
    assert ended.done == [reason, reason, NODE_EXITS[reason]]


def test_tidying_up_that_is_cut_short_leaves_the_run_done() -> None:
    ended = Ended()
    ended.interruption.is_done = True  # the model is committed; what hangs is the deletion of what it was made from
    ended.hard_end.start()
    ended.interruption.notify(Notice(StopReason.DEADLINE, 0.1))
    assert ended.over.wait(10)
    assert ended.done == [StopReason.DONE, StopReason.DONE, 0]


def test_neither_a_preemption_nor_an_attempt_that_left_in_time_is_ended() -> None:
    preempted, left = Ended(), Ended()
    for one in (preempted, left):
        one.hard_end.start()
    preempted.interruption.notify(Notice(StopReason.PREEMPTED, 0.0))
    left.interruption.notify(Notice(StopReason.BUDGET, 0.2))
    left.hard_end.stop()
    assert not left.over.wait(1.5)
    assert preempted.done == left.done == []
    preempted.hard_end.stop()


@pytest.mark.parametrize("is_done", [True, False])
def test_a_model_that_is_committed_after_the_notice_makes_the_run_done(
    is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages(ctx: Any) -> None:
        ctx.interruption.is_done = is_done

    interruption = Interruption()
    interruption.notify(Notice(StopReason.BUDGET, 60.0))
    monkeypatch.setattr(main, "run_stages", stages)
    ended = main._run(cast(Any, SimpleNamespace(interruption=interruption, until=None, attempt=1)), None)
    assert ended.reason is (StopReason.DONE if is_done else StopReason.BUDGET)
