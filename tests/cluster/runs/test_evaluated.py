"""What a run's evaluations came to, in its report and on screen; and which state is exported for them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alpaca_jobs.run_layout import EVAL_LOSS, LAYOUT
from alpaca_jobs.spec_io import job_from_dict
from alpaca_jobs.training.evaluation import write_evaluations
from checkpoints.keys import CommitRef
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cli.event_lines import line_of
from cli.progress import Progress, after, panel_rows
from cluster.events import Event
from cluster.node.stages import _chosen
from cluster.runs.evaluated import read_evaluated

DONE = [(4, 2.5), (8, 2.25), (12, float("nan"))]


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    """A store without anything."""
    return Store.open(f"file://{tmp_path}")


@pytest.fixture
def store(empty: Store) -> Store:
    """Three train commits, as the loop makes them."""
    for count, (step, loss) in enumerate(DONE, 1):
        writer = CommitWriter(empty, LAYOUT, CommitRef("train", step, 1))
        metrics = {} if loss != loss else {"metrics": {EVAL_LOSS.name: loss}}
        writer.publish(meta={"evaluations": write_evaluations(DONE[:count]), **metrics})
    return empty


def _commits(store: Store) -> list[CommitRef]:
    return sorted(list_commits(store, LAYOUT), key=LAYOUT.sort_key, reverse=True)


def _job(**parts: Any) -> Any:
    train = {"model": "tiny-llama", **({} if "train" not in parts else parts.pop("train"))}
    return job_from_dict(
        {"name": "j", "data": {"teacher": "offline"}, "train": train, "compute": {"workers": 1}, **parts}
    )


def test_the_report_tells_every_loss_and_the_best(store: Store) -> None:
    found = read_evaluated(store, _commits(store))
    assert found is not None
    assert (found.best_step, found.best_loss) == (8, 2.25)
    assert json.loads(json.dumps(found.to_json()))["losses"] == [[4, 2.5], [8, 2.25], [12, None]]
    assert read_evaluated(store, []) is None


def test_a_damaged_newest_commit_is_passed_over(store: Store) -> None:
    store.put("checkpoints/step-00000012/attempt-000001/manifest.json", b"{")
    found = read_evaluated(store, _commits(store))
    assert found is not None
    assert [step for step, _ in found.losses] == [4, 8]


@pytest.mark.parametrize(
    ("parts", "step"),
    [
        ({}, 12),
        ({"train": {"eval": {"fraction": 0.1}}}, 8),
        ({"train": {"eval": {"fraction": 0.1}}, "export": {"which": "last"}}, 12),
        ({"train": {"eval": {"fraction": 0.1}}, "export": {"which": "best"}}, 8),
    ],
)
def test_the_best_state_is_exported_where_the_job_evaluates(store: Store, parts: dict[str, Any], step: int) -> None:
    ctx: Any = SimpleNamespace(job=_job(**parts), store=store, layout=LAYOUT)
    assert _chosen(ctx, _commits(store)).position == step


def test_without_a_finite_loss_the_last_state_is_exported(empty: Store) -> None:
    refs = [CommitRef("train", step, 1) for step in (8, 4)]
    for ref in refs:
        CommitWriter(empty, LAYOUT, ref).publish(meta={})
    ctx: Any = SimpleNamespace(job=_job(train={"eval": {"fraction": 0.1}}), store=empty, layout=LAYOUT)
    assert _chosen(ctx, refs) == refs[0]


def test_an_evaluation_is_a_line_and_stays_in_the_panel() -> None:
    fields = {"step": 12, "loss": 2.5, "best_step": 8, "best_loss": 2.25}
    event = Event("2026-11-21T10:00:00.000Z", "eval", 1, "node", fields)
    words = "loss 2.5000 on held-out rows after step 12; the lowest was 2.2500 after step 8"
    assert line_of(event) == f"evaluation: {words}"
    assert ("evaluation", words) in panel_rows(after(Progress(step=12), event))
    best = Event(event.t, "eval", 1, "node", {**fields, "best_step": 12, "best_loss": 2.5})
    assert line_of(best) == "evaluation: loss 2.5000 on held-out rows after step 12"
