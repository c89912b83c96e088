"""What a command tells and what its watched folder shows are one story: every step once, and never backwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from cluster.events import Event, utc_now
from cluster.node.command_stage import CommandStage
from cluster.phase import PhaseMarker, read_marks
from cluster.runs.save_stats import save_under_way

SAVE = {"stall_s": 0.0, "seconds": 0.1, "bytes": 9, "stored_bytes": 9, "committed": True}


def context(scratch: Path, emit: Callable[..., None], *, watch: str | None) -> Any:
    checkpoints = SimpleNamespace(keep=2, keep_every=None)
    return SimpleNamespace(
        scratch=scratch, marker=PhaseMarker(scratch), events=SimpleNamespace(emit=emit), told=lambda *_: None,
        store=None, layout=LAYOUT, fence=None, attempt=1,
        job=SimpleNamespace(train=SimpleNamespace(watch=watch), checkpoints=checkpoints),
    )  # fmt: skip


def test_steps_say_which_save_is_under_way_as_those_of_our_own_training_do(tmp_path: Path) -> None:
    told: list[Event] = []

    def emit(kind: str, **fields: Any) -> None:
        told.append(Event(utc_now(), kind, 1, "node", fields))

    stage = CommandStage(context(tmp_path, emit, watch=None))
    facts = [
        {"kind": "step", "step": 1, "saving": "a word of its own", "saving_since": "never"},
        {"kind": "saving", "position": 1},
        {"kind": "step", "step": 2},
        {"kind": "saving", "position": None},
        {"kind": "save", "position": 1, **SAVE},
        {"kind": "step", "step": 3},
    ]
    process: Any = SimpleNamespace(facts=lambda: facts)
    stage._pass_on(process)
    save, seen = None, []
    for event in told:
        save = save_under_way(save, event)
        seen.append((event.kind, save and save.step))
    assert seen == [("step", None), ("saving", 1), ("step", 1), ("save", None), ("step", None)]
    assert read_marks(tmp_path).saving is None


def test_a_save_is_no_step_that_the_command_has_told_already(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    def emit(kind: str, **fields: Any) -> None:
        told.append((kind, fields.get("step", fields.get("position"))))

    stage = CommandStage(context(tmp_path, emit, watch="output"))
    facts: list[dict[str, Any]] = []
    process: Any = SimpleNamespace(facts=lambda: [facts.pop(0) for _ in range(len(facts))])
    assert stage._watched is not None
    for steps, saved in (([4, 5], []), ([6, 7], [5]), ([], [10]), ([11, 15], [15])):
        facts += [{"kind": "step", "step": step, "loss": 1.0} for step in steps]
        stage._watched.saves += [{"position": position, **SAVE} for position in saved]
        stage._pass_on(process)
    assert [step for kind, step in told if kind == "step"] == [4, 5, 6, 7, 10, 11, 15]
    assert [step for kind, step in told if kind == "save"] == [5, 10, 15]
    assert read_marks(tmp_path).reached == ("train", 15)
