"""Which rows are held out, what counts as best and when training stops (test_engines.py: on every engine)."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_jobs.data.formats import Example, Role, Turn, each_answer
from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import DataError
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.dataset import prepare_dataset
from alpaca_jobs.training.evaluation import (
    best_evaluation,
    held_out_bound,
    is_due,
    is_held_out,
    read_evaluations,
    stop_words,
    write_evaluations,
)
from alpaca_jobs.training.fingerprint import train_fingerprint
from alpaca_jobs.training.loss import chunked_cross_entropy
from alpaca_jobs.training.reading import Chat
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store

ROLES: tuple[Role, ...] = ("user", "assistant")
ROWS = [Row(f"Say {i}.", "", f"{i}") for i in range(1000)]
NAN = float("nan")


def split(rows: list[Row], *, fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows trained on, and rows held out."""
    bound = held_out_bound(rows, fraction=fraction, seed=seed)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        sides[is_held_out(row, seed=seed, bound=bound)].append(row)
    return sides


def test_a_rows_side_depends_on_the_seed_and_its_own_words_alone() -> None:
    trained, held_out = split(ROWS, fraction=0.1, seed=1)
    assert 70 <= len(held_out) <= 130
    assert sorted([*trained, *held_out], key=ROWS.index) == ROWS
    assert split(ROWS[::-1], fraction=0.1, seed=1)[1] == held_out[::-1], "not on its place"
    assert split(ROWS[:500], fraction=0.1, seed=1)[1] == [row for row in held_out if row in ROWS[:500]]
    assert split(ROWS, fraction=0.1, seed=2)[1] != held_out
    twice = split(ROWS * 2, fraction=0.1, seed=1)
    assert twice[1] == held_out * 2, "the same words are never on both sides"


def test_chats_that_one_chat_was_made_into_are_on_one_side() -> None:
    said = [tuple(Turn(role, f"{role} {i}.{n}") for n in range(3) for role in ROLES) for i in range(300)]
    parts = [Chat(part.turns) for turns in said for part in each_answer(Example("", turns))]
    bound = held_out_bound(parts, fraction=0.1, seed=1)
    sides = [is_held_out(part, seed=1, bound=bound) for part in parts]
    assert sides[0::3] == sides[1::3] == sides[2::3]
    assert 20 <= sum(sides[0::3]) <= 45


def test_one_row_at_least_is_held_out_and_one_at_least_trained_on() -> None:
    assert len(split(ROWS[:3], fraction=1e-9, seed=1)[1]) == 1
    with pytest.raises(DataError, match=r"none is left to train on\. Lower it"):
        split(ROWS[:1], fraction=0.5, seed=1)


def test_held_out_rows_are_in_no_batch_and_change_the_fingerprint_of_those_that_are() -> None:
    rows = [Row(f"Say {i} in words, and nothing else.", "", f"number {i}") for i in range(60)]
    plain = TrainSpec(model="tiny-llama", global_batch_size=4, epochs=1)
    train = TrainSpec(model="tiny-llama", global_batch_size=4, epochs=1, eval={"fraction": 0.2})  # type: ignore[arg-type]
    dataset = prepare_dataset(train, rows)
    trained, held_out = split(rows, fraction=0.2, seed=train.seed)
    assert dataset.evaluation is not None
    assert (len(dataset.rows), len(dataset.evaluation)) == (len(trained), len(held_out))
    assert dataset.num_steps == -(-len(trained) // 4)
    assert dataset.rows.digest == prepare_dataset(plain, trained).rows.digest
    files = dataset.tokenizer_files
    prints = [
        train_fingerprint(spec, data_digest=digest, tokenizer_files=files)
        for spec, digest in ((plain, "a"), (train, "a"), (train, "b"))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_rows_of_a_file_are_held_out_instead(tmp_path: Path) -> None:
    path = tmp_path / "held.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {i}.", "output": "x"}) + "\n" for i in range(5)))
    spec = {"model": "tiny-llama", "global_batch_size": 4, "eval": {"file": str(path)}}
    dataset = prepare_dataset(TrainSpec(**spec), ROWS[:40])  # type: ignore[arg-type]
    assert dataset.evaluation is not None
    assert (len(dataset.rows), len(dataset.evaluation)) == (40, 5)


def test_evaluations_come_at_multiples_and_after_the_last_step() -> None:
    assert [step for step in range(12) if is_due(step, every_steps=4, num_steps=10)] == [4, 8, 10]


def test_the_best_is_the_lowest_finite_loss_and_the_first_of_equals() -> None:
    assert best_evaluation([]) is None
    assert best_evaluation([(4, NAN), (8, float("inf"))]) is None
    assert best_evaluation([(4, NAN), (8, 2.0), (12, 1.5), (16, 1.5), (20, 3.0)]) == (12, 1.5)


def test_training_stops_after_so_many_evaluations_without_a_lower_loss() -> None:
    done = [(4, 3.0), (8, 2.0), (12, 2.0), (16, 2.5)]
    assert stop_words(done, None) is None
    assert stop_words(done, 3) is None
    assert stop_words([], 1) is None
    words = stop_words(done, 2)
    assert words is not None
    assert "Stopped early after step 16: 2 evaluations" in words
    assert "the lowest, 2.0000, was after step 8" in words
    assert "none was a finite number" in (stop_words([(4, NAN), (8, NAN)], 2) or "")


def test_evaluations_are_kept_to_the_last_bit() -> None:
    done = [(4, 0.1 + 0.2), (8, float("inf"))]
    assert read_evaluations(json.loads(json.dumps({"evaluations": write_evaluations(done)}))) == done
    assert read_evaluations({}) == []


def test_without_gradients_the_chunked_loss_makes_none() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 8, generator=generator, requires_grad=True)
    weight = torch.randn(50, 8, generator=generator, requires_grad=True)
    labels = torch.arange(6)
    asked: list[Any] = []
    zeros = torch.zeros_like
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "zeros_like", lambda *args, **more: asked.append(args) or zeros(*args, **more))
        loss = chunked_cross_entropy(hidden, weight, labels)
    assert not asked
    assert torch.equal(loss, chunked_cross_entropy(hidden, weight, labels).detach())


def test_the_best_state_is_saved_where_saves_are_skipped_while_one_is_under_way(
    worker: Any, one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is exported is the best that was committed: one passed over would be another model, without a word."""
    put, tell, was_told = Store.put, worker.Control.evaluated, threading.Event()

    def put_late(self: Store, key: str, *args: Any, **named: Any) -> Any:
        was_told.wait(60)  # the save after step 1 is under way until the evaluation after step 3
        time.sleep(0.2)
        return put(self, key, *args, **named)

    def evaluated(self: Any, report: Any) -> None:
        tell(self, report)
        was_told.set()

    monkeypatch.setattr(Store, "put", put_late)
    monkeypatch.setattr(worker.Control, "evaluated", evaluated)
    train = {
        "model": "tiny-llama", "global_batch_size": 4, "learning_rate": 1e-3, "max_steps": 6, "max_length": 64,
        "dtype": "float32", "eval": {"fraction": 0.2, "every_steps": 3},
    }  # fmt: skip
    run = {"store": f"file://{tmp_path}", "attempt": 1, "train": train, "held_out": 4, "interval": 1, "num_rows": 16}
    said = worker.train_once({**run, "when_busy": "skip"}, rank=0, world_size=1)
    assert 3 in said["best"]
    assert set(said["best"]) <= set(said["saved"])
    assert 2 not in said["saved"], "skipped"


def test_an_evaluation_that_was_made_up_for_and_ends_the_run_is_committed(
    worker: Any, one_rank: None, tmp_path: Path
) -> None:
    train = {
        "model": "tiny-llama", "global_batch_size": 4, "learning_rate": 2.0, "max_grad_norm": 100.0, "max_steps": 8,
        "max_length": 64, "dtype": "float32", "lr_schedule": "constant",
        "eval": {"file": "held-out.jsonl", "every_steps": 2, "stop_after": 1},
    }  # fmt: skip
    run = {"store": f"file://{tmp_path}", "train": train, "held_out": 4, "interval": 1, "num_rows": 16}
    undisturbed = worker.train_once({**run, "store": f"file://{tmp_path}/other", "attempt": 1}, rank=0, world_size=1)
    ended_at = undisturbed["evaluations"][-1][0]
    assert ended_at < 8, "it stops early, or this test shows nothing"

    first = worker.train_once({**run, "attempt": 1, "stop_at": ended_at}, rank=0, world_size=1)
    assert ended_at not in [step for step, _ in first["evaluations"]], "asked to stop before that evaluation"
    for attempt in (2, 3):  # the one that makes it up, and one that finds it made
        worker.train_once({**run, "attempt": attempt}, rank=0, world_size=1)
    store = Store.open(f"file://{tmp_path}")
    newest = max(list_commits(store, LAYOUT), key=LAYOUT.sort_key)
    assert (newest.position, newest.attempt) == (ended_at, 2)
    meta = CommitReader.open(store, LAYOUT, newest).manifest.meta
    assert [[step, loss] for step, loss in meta["evaluations"]] == undisturbed["evaluations"]
