"""Training that stands still: what is silence, when it is said, and when the machine is given up."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import NodeLost
from cluster.exits import NODE_EXITS
from cluster.node.attempt_context import Interruption
from cluster.node.failures import Failure, describe_failure
from cluster.node.stall_watch import StallWatch
from cluster.node.standstill import PATIENCE, PAUSES, WARN_FIRST_S, TrainingProgress
from cluster.phase import read_marks
from cluster.recovery import StopReason

MAX_MIN = 30.0


class Watched:
    """A training whose time the test turns."""

    def __init__(self, *, max_stall_min: float | None = MAX_MIN, tells_steps: bool = True) -> None:
        self.now = 0.0
        self.is_saving = False
        self.scratch: Path | None = None  # where a save is read from, if it is
        self.said: list[dict[str, Any]] = []
        self.done: list[object] = []
        self.over = threading.Event()
        self.interruption = Interruption()
        self.progress = TrainingProgress(clock=lambda: self.now)
        self.watch = StallWatch(
            self.progress, self.interruption, max_stall_min=max_stall_min, is_saving=self.is_saving_now,
            tell=lambda kind, **fields: self.said.append({"kind": kind, **fields}), record=self._record,
            gone=self.done.append, exit=self._exit, leave_within_s=0.1,
        )  # fmt: skip
        self.progress.begin(tells_steps=tells_steps)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    def steps(self, count: int, *, each_s: float = 2.0) -> None:
        for number in range(count):
            self.pass_time(each_s)
            self.progress.told("step", {"step": number + 1})

    def ends_at(self) -> float:
        """Seconds of silence from now on until the watch wants the attempt's end, looked at every second."""
        silent_s = 0.0
        while self.watch.look() is None:
            self.pass_time(1.0)
            silent_s += 1.0
            assert silent_s < 1e5, "it never ends"
        return silent_s

    def is_saving_now(self) -> bool:
        return self.is_saving if self.scratch is None else read_marks(self.scratch).saving is not None

    def _record(self, failure: Failure) -> None:
        self.done.append(failure)

    def _exit(self, code: int) -> None:
        self.done.append(code)
        self.over.set()


def test_a_training_without_a_step_is_ended_after_the_jobs_minutes() -> None:
    one = Watched()
    one.steps(20)
    assert one.ends_at() == 60 * MAX_MIN
    words = one.watch.look()
    assert words is not None
    assert "no step for 30 min 00 s after step 20, where one usually takes 2.0 s" in words
    assert "limits.max_stall_min is 30" in words


def test_a_disk_that_is_gone_does_not_end_the_watch(tmp_path: Path) -> None:
    one = Watched()
    one.steps(20)
    (tmp_path / "saving").mkdir()  # reading it is an error of the file system
    one.scratch = tmp_path
    assert one.ends_at() == 60 * MAX_MIN


def test_what_comes_before_the_second_step_and_a_save_get_more_time() -> None:
    fresh, saving = Watched(), Watched()
    assert fresh.ends_at() == PATIENCE * 60 * MAX_MIN
    saving.steps(20)
    saving.is_saving = True
    assert saving.ends_at() == PATIENCE * 60 * MAX_MIN
    saving.is_saving = False
    assert saving.watch.look() is not None


def test_the_first_evaluation_takes_as_long_as_it_takes() -> None:
    one = Watched()
    one.steps(5)
    one.progress.told("evaluating", {})
    one.progress.told("save", {"step": 5})  # of the step before: it says nothing of the evaluation
    assert one.ends_at() == PATIENCE * 60 * MAX_MIN
    one.progress.told("eval", {"step": 5})
    one.steps(1)
    assert one.ends_at() > PATIENCE * 60 * MAX_MIN  # and the next one may take as long again, and more


def test_pauses_that_recur_are_the_jobs_own() -> None:
    one = Watched()
    one.steps(5)
    one.pass_time(1000.0)  # an evaluation
    one.progress.told("eval", {"step": 5})
    one.steps(5)
    assert one.ends_at() == PAUSES * 1000.0


def test_saves_and_evaluations_are_signs_of_life_and_other_facts_are_none() -> None:
    one = Watched()
    one.steps(5)
    for kind, silent_s in (("save", 0.0), ("eval", 0.0), ("log", 100.0)):
        one.pass_time(100.0)
        one.progress.told(kind, {})
        still = one.progress.look()
        assert still is not None
        assert still.silent_s == silent_s


def test_a_command_that_tells_no_steps_is_not_judged_and_one_that_does_is() -> None:
    silent = Watched(tells_steps=False)
    silent.pass_time(1e6)
    assert silent.watch.look() is None
    assert silent.said == []
    telling = Watched(tells_steps=False)
    telling.steps(2, each_s=1200.0)  # a folder that is looked into: told of once in twenty minutes
    assert telling.ends_at() == PAUSES * 1200.0


def test_what_follows_training_is_not_judged() -> None:
    one = Watched()
    one.steps(5)
    one.progress.end()
    one.pass_time(1e6)
    assert one.watch.look() is None


def test_it_is_said_once_then_at_twice_the_silence_and_anew_after_a_step() -> None:
    one = Watched()
    one.steps(20)
    said_at = []
    for second in range(1, 500):
        one.pass_time(1.0)
        one.watch.look()
        if len(one.said) > len(said_at):
            said_at.append(second)
    assert said_at == [60, 120, 240, 480]
    assert one.said[0]["kind"] == "stall"
    assert (one.said[0]["step"], one.said[0]["usual_s"], one.said[0]["seconds"]) == (20, 2.0, 60.0)
    assert "After 30 min the attempt is ended, and the next one starts elsewhere" in one.said[0]["words"]
    one.steps(1)
    one.watch.look()
    one.pass_time(2 * 550.0)  # twice the longest pause, which was the one before
    one.watch.look()
    assert len(one.said) == 5


def test_loading_a_large_model_is_no_news_for_a_quarter_of_an_hour() -> None:
    one = Watched()
    for silent_s, said in ((WARN_FIRST_S - 1.0, 0), (1.0, 1)):
        one.pass_time(silent_s)
        one.watch.look()
        assert len(one.said) == said


def test_null_ends_nothing_and_says_so() -> None:
    one = Watched(max_stall_min=None)
    one.steps(20)
    one.pass_time(1e6)
    assert one.watch.look() is None
    assert "limits.max_stall_min is null" in one.said[-1]["words"]


@pytest.mark.parametrize("leaves", [True, False])
def test_the_stages_are_told_and_what_stays_is_ended_as_a_failure_of_the_node(leaves: bool) -> None:
    one = Watched()
    one.steps(5)
    one.pass_time(60 * MAX_MIN)
    if leaves:  # the stages see the loss at once
        inner = one.interruption.lose

        def lose(error: Any) -> None:
            inner(error)
            one.watch.stop()

        one.interruption.lose = lose  # type: ignore[method-assign]
    one.watch.start()
    assert one.over.wait(2.5 if leaves else 10.0) is not leaves
    lost = one.interruption.lost
    assert isinstance(lost, NodeLost)
    assert describe_failure(lost).reason is StopReason.NODE_FAILURE
    if leaves:
        assert one.done == []
        return
    failure, reason, code = one.done
    assert isinstance(failure, Failure)
    assert failure.reason is reason is StopReason.NODE_FAILURE
    assert "Training stands still on this machine" in failure.words
    assert code == NODE_EXITS[StopReason.NODE_FAILURE]
