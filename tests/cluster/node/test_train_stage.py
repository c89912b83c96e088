"""What the workers say reaches the run: their warnings, the cause of a failure, the last words of one that died."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import RayFailure
from cluster.node.ray_deaths import death_words
from cluster.node.train_stage import TrainStage
from cluster.node.worker_log import tell_warnings

RAY_SAYS = """The actor died unexpectedly before finishing this task.
\tclass_name: TrainWorker
\tactor_id: e1daab8d84a40acd160a68ff01000000
\tpid: 13129
\tname: rank 1
\tnamespace: 120b6dd5
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed
"""


class Calls:
    """A runtime whose calls have ended with an error or a value, some after so many looks."""

    def __init__(self, ended_after: dict[str, int], errors: dict[str, Exception], facts: list[dict[str, Any]]) -> None:
        self._ended_after, self._errors, self._facts, self._looks = ended_after, errors, facts, 0

    def wait(self, calls: list[str], *, timeout_s: float) -> tuple[list[str], list[str]]:
        self._looks += 1
        done = [call for call in calls if self._ended_after.get(call, 0) <= self._looks]
        return done, [call for call in calls if call not in done]

    def result(self, call: str) -> Any:
        if call in self._errors:
            raise self._errors[call]
        return [self._facts.pop(0) for _ in range(len(self._facts))]


def stage_of(calls: Calls, told: list[str]) -> TrainStage:
    interruption = SimpleNamespace(check=lambda: None, notice=None)
    events = SimpleNamespace(emit=lambda kind, **_: told.append(kind))
    ctx: Any = SimpleNamespace(interruption=interruption, events=events, told=lambda *_: None)
    stage = TrainStage(ctx, calls)  # type: ignore[arg-type]
    stage._workers = [SimpleNamespace(drain=SimpleNamespace(remote=lambda: "drain"))]
    return stage


PEER = RuntimeError("gloo: Connection closed by peer")
FULL = MemoryError("rank 1 is full")


@pytest.mark.parametrize("later", [1, 3])
def test_the_cause_of_a_failure_is_told_whichever_rank_speaks_first(later: int) -> None:
    told: list[str] = []
    calls = Calls({"rank 0": 1, "rank 1": later}, {"rank 0": PEER, "rank 1": FULL}, [{"kind": "step", "step": 5}])
    with pytest.raises(MemoryError, match="rank 1 is full"):
        stage_of(calls, told)._until_done(["rank 0", "rank 1"])
    assert told == ["step"], "the last steps before it"


def test_a_rank_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.node.train_stage._OTHERS_WITHIN_S", 0.2)
    calls = Calls({"rank 0": 1, "rank 1": 10**9, "drain": 10**9}, {"rank 0": PEER}, [])
    with pytest.raises(RuntimeError, match="closed by peer"):
        stage_of(calls, [])._until_done(["rank 0", "rank 1"])


def test_a_warning_of_a_worker_is_logged_on_its_node(caplog: pytest.LogCaptureFixture) -> None:
    facts: list[dict[str, Any]] = []
    ours = [logging.getLogger(name) for name in ("alpaca_jobs", "checkpoints", "cluster")]
    before = [list(one.handlers) for one in ours]
    tell_warnings(facts.append)
    try:
        logging.getLogger("alpaca_jobs.training.dataset").warning("%d rows were cut", 7)
        logging.getLogger("alpaca_jobs.training.dataset").info("nothing to tell")
    finally:
        for one, handlers in zip(ours, before, strict=True):
            one.handlers = handlers
    assert [fact["message"] for fact in facts] == ["7 rows were cut"]
    caplog.clear()
    told: list[str] = []
    stage_of(Calls({}, {}, facts), told)._pass_on_facts(give_up_at=math.inf)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("alpaca_jobs.training.dataset", "WARNING", "7 rows were cut")
    ]
    assert told == []


def test_a_death_is_told_in_a_sentence_with_what_the_process_said_last(tmp_path: Path) -> None:
    logs = tmp_path / "session_2026" / "logs"
    logs.mkdir(parents=True)
    begin = (
        "The process of rank 1 (pid 13129) died without an error of its own: it was killed, or crashed below Python "
        "(Worker unexpectedly exits with a connection error code 2). "
    )
    assert death_words(RAY_SAYS, tmp_path) == begin + "It said nothing."
    said = logs / "worker-ab12-01000000-13129.err"
    said.write_text(":job_id:01000000\n\none\ntwo\nthree\nfour\n")
    assert death_words(RAY_SAYS, tmp_path) == begin + "It said last: two | three | four"
    said.write_text("one\nFatal Python error: Segmentation fault\n\nStack:\n" + "  File x\n" * 100)
    assert death_words(RAY_SAYS, tmp_path) == begin + "It said last: Fatal Python error: Segmentation fault"
    assert death_words("the raylet is gone", tmp_path) == "A Ray process died: the raylet is gone"


def test_a_failure_that_nobody_explains_is_raised_as_it_is() -> None:
    calls = Calls({"rank 0": 1}, {"rank 0": RayFailure("died"), "drain": RayFailure("died")}, [])
    with pytest.raises(RayFailure, match="died"):
        stage_of(calls, [])._until_done(["rank 0"])
