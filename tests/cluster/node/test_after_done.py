"""after_done: delete: by the attempt that exported, or by the next one, and never before the model is whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec_io import job_from_dict
from alpaca_jobs.training.evaluation import write_evaluations
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.events import EventWriter
from cluster.node.attempt_context import AttemptContext, Interruption
from cluster.node.stages import _train, run_stages
from cluster.node.train_stage import TrainEnd
from cluster.phase import PhaseMarker
from cluster.recovery import Action, Decision, StopReason
from cluster.runs.report import make_report

LOSSES = [(10, 2.5), (20, float("nan")), (30, 2.25)]
MODEL = CommitRef("export", 0, 1)


def commit(store: Store, ref: CommitRef, meta: dict[str, Any]) -> None:
    writer = CommitWriter(store, LAYOUT, ref)
    writer.put("data", b"%d" % ref.position)
    writer.publish(meta=meta)


class Trained:
    """A training stage that is over: its commits lie in the store, and it exports two files."""

    def __init__(self, store: Store) -> None:
        self._store = store
        for count, (step, _) in enumerate(LOSSES, 1):
            commit(store, CommitRef("train", step, 1), {"evaluations": write_evaluations(LOSSES[:count])})

    def load(self, rows: Any) -> None:
        """They are no matter here."""

    def run(self, candidates: Any, *, base_is_open: bool) -> TrainEnd:
        return TrainEnd("done", step=30, saved=30, words="")

    def export(self, ref: CommitRef) -> str:
        commit(self._store, MODEL, {"step": ref.position})
        return "digest"

    def end(self) -> None:
        """It has no processes."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"file://{tmp_path}/store/run-1")


def context(store: Store, scratch: Path, *, attempt: int = 1, after_done: str = "delete") -> AttemptContext:
    job = job_from_dict(
        {
            "name": "j", "data": {"teacher": "offline"}, "train": {"model": "tiny-llama"},
            "compute": {"workers": 1}, "checkpoints": {"after_done": after_done},
        }
    )  # fmt: skip
    log = AttemptLog(store, LAYOUT)
    log.claim(attempt, {"placement": {}})
    return AttemptContext(
        run_id="run-1", attempt=attempt, job=job, world_size=1, layout=LAYOUT, store=store, store_uri=store.uri,
        log=log, fence=Fence(log, attempt), events=EventWriter(store, attempt, "node"),
        marker=PhaseMarker(scratch), interruption=Interruption(), scratch=scratch,
    )  # fmt: skip


def trains(store: Store, scratch: Path, **more: Any) -> AttemptContext:
    ctx = context(store, scratch, **more)
    ctx.log.put_base(1, None)
    _train(ctx, Trained(store), [], [])  # type: ignore[arg-type]
    ctx.events.close()
    return ctx


def left(store: Store) -> list[int]:
    return [ref.position for ref in list_commits(store, LAYOUT, "train")]


def test_the_checkpoints_go_and_the_report_still_says_what_they_said(store: Store, tmp_path: Path) -> None:
    trains(store, tmp_path)
    assert (left(store), store.list("checkpoints/")) == ([], [])
    report = make_report(store, "run-1", Decision(Action.FINISH, "Done.", reason=StopReason.DONE, exit_code=0))
    assert report.step == 30
    assert report.evaluated is not None
    assert (report.evaluated.best_step, report.evaluated.best_loss, len(report.evaluated.losses)) == (30, 2.25, 3)


def test_they_stay_unless_the_job_says_so(store: Store, tmp_path: Path) -> None:
    trains(store, tmp_path, after_done="keep")
    assert left(store) == [30, 20, 10]


def test_an_attempt_that_finds_the_model_finishes_what_another_began_to_delete(store: Store, tmp_path: Path) -> None:
    trains(store, tmp_path, after_done="keep").log.put_end(1, {"stop_reason": "lost"})
    store.delete([LAYOUT.manifest_key(CommitRef("train", 10, 1))])
    run_stages(context(store, tmp_path, attempt=2))
    assert store.list("checkpoints/") == []


def test_a_model_that_did_not_arrive_whole_keeps_them_with_a_warning(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trains(store, tmp_path, after_done="keep").log.put_end(1, {"stop_reason": "lost"})
    store.put("model/attempt-000001/data", b"1")
    with caplog.at_level(logging.WARNING):
        run_stages(context(store, tmp_path, attempt=2))
    assert left(store) == [30, 20, 10]
    assert "model/attempt-000001/data is damaged" in caplog.text
    assert "checkpoints prune run-1 --keep 0" in caplog.text
