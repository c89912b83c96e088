"""How long leaving takes: from this attempt's own saves, from those of the one before, or from the model's size."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from alpaca_jobs.spec import JobSpec
from alpaca_jobs.training.saving import NOTICE_MARGIN, fits_notice
from checkpoints.store import Store
from cluster.events import Event, EventWriter
from cluster.node.leave_time import CANCEL_LEAST_S, CANCEL_MOST_S, MARGIN, TOLD_S, LeaveTime, expected_save_s
from cluster.phase import Marks, Phase, PhaseMarker, read_marks


def saved(seconds: float, *, committed: bool = True) -> tuple[str, dict[str, object]]:
    return "save", {"position": 3, "seconds": seconds, "committed": committed}


def a_job(model: str = "huggyllama/llama-7b", num_nodes: int = 1, **train: object) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "demo", "data": {"num_rows": 8, "teacher": "offline"}, "train": {"model": model, **train},
            "compute": {"infra": ["aws"], "gpus": "A100-80GB:8", "num_nodes": num_nodes}, "store": "s3://b/r",
        }
    )  # fmt: skip


def test_the_window_fits_the_longest_of_the_last_saves_after_a_step_and_an_evaluation() -> None:
    leave = LeaveTime()
    for one in (saved(160.0), saved(120.0), saved(900.0, committed=False), ("step", {"seconds": 12.0})):
        leave.told(*one)
    for name, seconds in (("step", 9.0), ("eval", 30.0), ("ray", 500.0)):
        leave.told(name, {"seconds": seconds})
    leave.told("log", {"message": "no time"})
    assert leave.save_s == 160.0
    assert leave.window_s == MARGIN * 160 + 12 + 30 + TOLD_S
    # What the trainer asks itself when the notice has reached it, a step and an evaluation later.
    assert fits_notice(leave.window_s - 12 - 30 - TOLD_S, estimate_s=leave.save_s)
    assert MARGIN == NOTICE_MARGIN
    for _ in range(4):
        leave.told(*saved(10.0))
    assert leave.save_s == 10.0  # as many as the trainer looks at


def test_a_save_that_is_under_way_has_to_end_first_and_where_nothing_trains_nothing_is_saved(tmp_path: Path) -> None:
    marker = PhaseMarker(tmp_path)
    marker.start()
    leave = LeaveTime(40.0, lambda: read_marks(tmp_path))
    assert leave.window_s == 0.0
    marker.enter(Phase.STEP)
    assert leave.window_s == MARGIN * 40 + TOLD_S
    marker.saving(12)
    assert leave.window_s == (MARGIN + 1) * 40 + TOLD_S
    marker.enter(Phase.EXPORT)
    assert leave.window_s == 0.0


def test_what_the_attempt_before_measured_counts_until_this_one_has_measured_itself() -> None:
    store = Store.open("memory://leave-time").child("run")
    events = EventWriter(store, attempt=1, writer="node", flush_s=0.05)
    events.emit("save", position=3, seconds=70.0, committed=True)
    events.emit("step", seconds=4.0)
    events.close()
    leave = LeaveTime(5.0, lambda: Marks(Phase.STEP, None, None))
    leave.learn_from(store)
    give_up_at = time.monotonic() + 10
    while leave.save_s != 70.0 and time.monotonic() < give_up_at:
        time.sleep(0.01)
    assert leave.window_s == MARGIN * 70 + 4 + TOLD_S
    leave.told(*saved(20.0))
    assert leave.window_s == MARGIN * 20 + 4 + TOLD_S


def test_a_supervisors_words_are_no_measurements() -> None:
    leave = LeaveTime(5.0)
    leave.learn([Event("t", "save", 1, "supervisor", {"seconds": 99.0, "committed": True})])
    assert leave.save_s == 5.0


def test_before_anything_is_measured_the_models_size_counts() -> None:
    seven_b = expected_save_s(a_job(), None)
    assert seven_b == pytest.approx(162, abs=2)  # 81 GB at 500 MB/s
    assert expected_save_s(a_job(num_nodes=2), None) == pytest.approx(seven_b / 2)
    assert expected_save_s(a_job(method="lora"), None) == 0.0
    assert expected_save_s(a_job(model="mine"), None) == 0.0
    assert expected_save_s(a_job(model="mine"), 8_000_000_000) == pytest.approx(192)  # as its files told at launch


@pytest.mark.parametrize(("save_s", "cancel_s"), [(1.0, CANCEL_LEAST_S), (160.0, 245.0), (1000.0, CANCEL_MOST_S)])
def test_a_cancel_waits_for_a_save_within_bounds(save_s: float, cancel_s: float) -> None:
    leave = LeaveTime(save_s, lambda: Marks(Phase.STEP, None, None))
    assert leave.cancel_s == cancel_s
    assert leave.cancel_s <= leave.longest_cancel_s <= CANCEL_MOST_S
