"""Tracking: what counts is told once, over recoveries that go back; TensorBoard and wandb read it back themselves."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import StoreUnreachable
from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.events import Event, EventWriter
from cluster.node.track_tensorboard import FOLDER, TensorBoardTracker
from cluster.node.track_wandb import KEY, WandbTracker
from cluster.node.tracking import Point, Tracking, history, point_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the trackers' libraries, about themselves


def _step(step: int, loss: float, attempt: int, kind: str = "step") -> Event:
    return Event(f"2026-11-21T10:{attempt:02d}:{step:02d}.000Z", kind, attempt, "node", {"step": step, "loss": loss})


def _record(number: int, base: CommitRef | None) -> AttemptRecord:
    return AttemptRecord(number, {}, True, base, None)


def test_each_step_is_told_once_by_the_attempt_whose_step_it_is() -> None:
    rows = CommitRef("generate", 7, 1)
    records = [_record(1, rows), _record(2, CommitRef("train", 4, 1)), _record(3, CommitRef("train", 2, 1))]
    events = [_step(step, attempt + step / 100, attempt) for attempt in (1, 2, 3) for step in range(1, 9)]
    points = history(events, records, base=CommitRef("train", 5, 3))  # attempt 2's line was given up
    assert [(point.step, point.values["train/loss"]) for point in points] == [
        (1, 1.01), (2, 1.02), (3, 3.03), (4, 3.04), (5, 3.05),
    ]  # fmt: skip


def test_a_loss_that_no_event_tells_comes_from_the_checkpoint() -> None:
    points = history(
        [_step(1, 1.0, 1)], [_record(1, None)], base=CommitRef("train", 3, 1), losses=[1.0, 0.5, 0.25, 9.0]
    )
    assert [(point.step, dict(point.values)) for point in points] == [
        (1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}), (3, {"train/loss": 0.25}),
    ]  # fmt: skip


def test_an_evaluation_that_no_event_tells_comes_from_the_checkpoint() -> None:
    events = [_step(1, 1.0, 1), _step(2, 0.9, 1), _step(2, 2.5, 1, "eval"), _step(3, 0.8, 1)]
    done = [(2, 2.5), (3, 2.25), (4, 9.0)]
    points = history(events, [_record(1, None)], base=CommitRef("train", 3, 1), evaluations=done)
    told = [(point.step, point.values["eval/loss"]) for point in points if "eval/loss" in point.values]
    assert told == [(2, 2.5), (3, 2.25)]
    assert points[-1].step == 3


def test_an_evaluation_made_up_for_after_a_recovery_counts() -> None:
    records = [_record(1, None), _record(2, CommitRef("train", 4, 1))]
    events = [_step(4, 1.0, 1), _step(4, 2.0, 2, "eval"), _step(5, 0.9, 2)]
    points = history(events, records, base=CommitRef("train", 5, 2))
    assert [(point.step, list(point.values)) for point in points] == [
        (4, ["train/loss"]), (4, ["eval/loss"]), (5, ["train/loss"]),
    ]  # fmt: skip


def test_only_numbers_are_tracked_and_saves_that_were_committed() -> None:
    assert point_of("step", {"step": 3, "loss": 1.5, "mfu": None}, at_s=1.0) == Point(3, 1.0, {"train/loss": 1.5})
    assert point_of("save", {"position": 3, "seconds": 1.0, "committed": False}, at_s=1.0) is None
    assert point_of("log", {"message": "x"}, at_s=1.0) is None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a folder that TensorBoard can read."""
    return Store.open(f"file://{tmp_path}/run")


def _read_tensorboard(tmp_path: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "run" / FOLDER), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(one.step, round(one.value, 4)) for one in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_shows_one_curve_after_an_attempt_went_back(store: Store, tmp_path: Path) -> None:
    first = TensorBoardTracker(store, 1, part_bytes=150)
    for step in range(1, 8):
        first.add(Point(step, 100.0 + step, {"train/loss": 10.0 + step}))
    first.flush()  # and then it is killed; step 4 was its last commit
    assert len(store.list(FOLDER)) > 2, "in parts, so that no large file is put again and again"
    second = TensorBoardTracker(store, 2)
    for step in range(1, 7):
        second.add(Point(step, 50.0 + step, {"train/loss": 20.0 + step}))  # a clock that runs behind decides nothing
    second.close()
    assert _read_tensorboard(tmp_path) == {"train/loss": [(step, 20.0 + step) for step in range(1, 7)]}


def _ctx(store: Store, attempt: int) -> Any:
    return SimpleNamespace(store=store, layout=LAYOUT, log=AttemptLog(store, LAYOUT), attempt=attempt)


def test_a_recovered_run_is_tracked_whole(store: Store, tmp_path: Path) -> None:
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {})
    log.put_base(1, None)
    events = EventWriter(store, attempt=1, writer="node")
    for step in (1, 2, 4):  # what it said of step 3 was lost with it
        events.emit("step", step=step, loss=float(step))
    events.close()
    base = CommitRef("train", 3, 1)
    losses = {"first_step": 1, "hex": [float(step).hex() for step in (1, 2, 3)]}
    CommitWriter(store, LAYOUT, base).publish(meta={"losses": losses})
    log.claim(2, {})
    log.put_base(2, base)
    ctx = _ctx(store, 2)
    tracking = Tracking(ctx, lambda: [TensorBoardTracker(store, 2)])
    tracking.begin(base)
    tracking.told("step", {"step": 4, "loss": 0.5})
    tracking.told("eval", {"step": 4, "loss": 0.25})
    tracking.close()
    assert _read_tensorboard(tmp_path) == {
        "train/loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 0.5)], "eval/loss": [(4, 0.25)],
    }  # fmt: skip


class _Failing:
    """A tracker whose store refuses at first."""

    def __init__(self, error: Exception, refusals: int = 1) -> None:
        self.error, self.refusals = error, refusals
        self.points: list[int] = []
        self.flushed = threading.Event()

    def add(self, point: Point) -> None:
        self.points.append(point.step)

    def flush(self) -> None:
        self.refusals -= 1
        if self.refusals >= 0:
            raise self.error
        self.flushed.set()

    def close(self) -> None: ...


def test_a_store_that_does_not_answer_is_asked_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    tracker = _Failing(StoreUnreachable("nothing answers"))
    tracking = Tracking(_ctx(store, 1), lambda: [tracker], flush_s=0.01)
    tracking.told("step", {"step": 1, "loss": 1.0})
    assert tracker.flushed.wait(10)
    tracking.close()
    assert "waits for the store" in caplog.text


def test_a_tracker_that_breaks_harms_nobody(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    tracking = Tracking(_ctx(store, 1), lambda: [_Failing(ValueError("broken"))], flush_s=0.01)
    tracking.told("step", {"step": 1, "loss": 1.0})
    tracking._thread.join(10)
    tracking.told("step", {"step": 2, "loss": 1.0})
    tracking.close()
    assert "the run goes on without it" in caplog.text


def _read_wandb(folder: Path) -> list[dict[str, str]]:
    """The rows of an offline run's file, by the library's own reader."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.rglob("*.wandb")
    data: Any = DataStore()
    data.open_for_scan(str(path))
    rows = []
    while (raw := data.scan_data()) is not None:
        record: Any = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            rows.append({"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item})
    data.close()
    return rows


@pytest.mark.process
def test_wandb_without_a_key_writes_the_whole_run_to_the_store_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    for attempt, last in ((1, 3), (2, 5)):
        tracker = WandbTracker(
            store, attempt, run_id="demo-abcde", name="demo", settings={"train": {"seed": 42}},
            folder=tmp_path / f"scratch-{attempt}",
        )  # fmt: skip
        for step in range(1, last + 1):
            tracker.add(Point(step, 100.0, {"train/loss": attempt + step / 10}))
            tracker.flush()
        tracker.add(Point(last - 1, 100.0, {"checkpoint/seconds": 1.0}))  # told late
        tracker.close()
    kept = store.list("tracking/wandb/")
    assert kept
    assert all(key.startswith("tracking/wandb/attempt-000002/") for key in kept), "the newest has the whole run"
    rows = _read_wandb(tmp_path / "run" / "tracking/wandb")
    told = [(int(row["_step"]), float(row["train/loss"])) for row in rows if "train/loss" in row]
    assert told == [(step, 2 + step / 10) for step in range(1, 6)]
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"sk-of-the-environment" not in path.read_bytes()


def test_wandbs_server_gets_no_step_that_it_has(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    sent: list[int] = []
    run = SimpleNamespace(step=4, log=lambda values, step: sent.append(step), finish=lambda: None)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **more: asked.update(more) or run)
    monkeypatch.setenv(KEY, "a-key-that-is-nobodys")
    tracker = WandbTracker(store, 3, run_id="demo-abcde", name="demo", settings={}, folder=tmp_path / "scratch")
    for step in range(1, 7):
        tracker.add(Point(step, 100.0, {"train/loss": 1.0}))
    tracker.close()
    assert (asked["id"], asked["mode"], asked["resume"]) == ("demo-abcde", "online", "allow")
    assert sent == [4, 5, 6]
    assert store.list("tracking/") == []
    assert "nobodys" not in repr(asked)
