"""Saved by two ranks, loaded by one to four; failures reach everybody. One start of torch serves all checks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

WORLD = 4


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, run_ranks: Any) -> dict[str, Any]:
    """What programs/ranks.py found."""
    folder = tmp_path_factory.mktemp("ranks")
    meet = f"file://{tmp_path_factory.mktemp('meet')}/ranks"
    program = Path(__file__).parent / "programs" / "ranks.py"
    commands = [[sys.executable, str(program), str(rank), meet, str(folder)] for rank in range(WORLD)]
    outputs = run_ranks(commands, timeout=200)
    found: dict[str, Any] = json.loads(outputs[0][0])
    return found


def test_two_ranks_save_and_say_so(answers: dict[str, Any]) -> None:
    save = answers["save"]
    assert save["committed"] == [[1, True], [2, True], [3, True]]
    assert save["events"] == [1, None, 2, None, 3, None]
    assert min(save["bytes"]) > 20_000
    assert save["again"], "a position is never saved twice"


def test_sharded_weights_and_moments_are_copied_while_training_goes_on(answers: dict[str, Any]) -> None:
    """The ranks made the next update at once; that "saved" is loaded everywhere (below) says that it had waited."""
    assert answers["save"]["copied late"] == ["model", "optim"]
    assert min(answers["save"]["stalls"]) > 0.03, "the update waited for more than six tensors"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_what_two_ranks_saved_is_identical_on_any_world_size(answers: dict[str, Any], world_size: int) -> None:
    saved, load = answers["save"]["saved"], answers[f"load {world_size}"]
    assert load["loaded"] == saved
    assert load["applied"] == saved, "model and optimizer took it over"
    assert load["meta"] == {"position": 3}
    assert len(saved) > 30
    assert any("exp_avg" in name for name in saved)


def test_damage_seen_by_one_rank_is_raised_on_all_and_all_fall_back(answers: dict[str, Any]) -> None:
    damage = answers["damage"]
    assert len(damage["everywhere"]) == 3
    assert len(set(damage["everywhere"])) == 1
    assert damage["everywhere"][0].startswith("Damaged: ")
    assert "rank-00001-0000.bin is damaged: block of" in damage["everywhere"][0]
    assert (damage["fell_back_to"], damage["fallbacks"], damage["step"]) == (2, 1, 2)


def test_failures_of_one_rank_reach_both_and_commit_nothing(answers: dict[str, Any]) -> None:
    first, second = answers["failures"]["everywhere"]
    assert first == second
    failed, recovered, mismatch, superseded = first
    assert failed.startswith("StoreFull: train 50 (attempt 7) was not committed; the commit before it is unharmed. ")
    assert "rank 1: file://" in failed
    assert "no space or quota left" in failed
    assert recovered == "fine", "the next save is whole again"
    assert mismatch.startswith("StateMismatch: bad is a object")
    assert superseded.startswith("Superseded: attempt 7 is over: attempt 99 was claimed")
    assert 51 in answers["failures"]["commits"]
    assert not {50, 52, 53} & set(answers["failures"]["commits"])


def test_a_save_is_skipped_by_all_when_one_is_busy(answers: dict[str, Any]) -> None:
    assert answers["skip"]["commits"] == [3, 1]
