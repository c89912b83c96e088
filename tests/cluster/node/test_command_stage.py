"""What a command tells and what its watched folder shows are one story: every step once, and never backwards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from alpaca_jobs.run_layout import LAYOUT
from cluster.node.command_stage import CommandStage
from cluster.phase import PhaseMarker, read_marks

SAVE = {"stall_s": 0.0, "seconds": 0.1, "bytes": 9, "stored_bytes": 9, "committed": True}


def test_a_save_is_no_step_that_the_command_has_told_already(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    def emit(kind: str, **fields: Any) -> None:
        told.append((kind, fields.get("step", fields.get("position"))))

    checkpoints = SimpleNamespace(keep=2, keep_every=None)
    ctx: Any = SimpleNamespace(
        scratch=tmp_path, marker=PhaseMarker(tmp_path), events=SimpleNamespace(emit=emit), told=lambda *_: None,
        store=None, layout=LAYOUT, fence=None, attempt=1,
        job=SimpleNamespace(train=SimpleNamespace(watch="output"), checkpoints=checkpoints),
    )  # fmt: skip
    stage = CommandStage(ctx)
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
