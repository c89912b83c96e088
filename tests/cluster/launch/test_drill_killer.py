"""Where the drill aims, and what it takes a kill for."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord
from cluster.launch.drill import lost_steps
from cluster.launch.drill_killer import Aim, Kill, is_moment, plan_aims
from cluster.phase import Marks, Phase


def test_the_same_seed_gives_the_same_aims_and_another_gives_others() -> None:
    one = plan_aims(20, seed=1, total_steps=40, interval=5)
    assert one == plan_aims(20, seed=1, total_steps=40, interval=5)
    assert one != plan_aims(20, seed=2, total_steps=40, interval=5)


def test_twenty_kills_aim_five_times_at_every_phase_generation_first() -> None:
    aims = plan_aims(20, seed=3, total_steps=40, interval=5)
    assert Counter(aim.phase for aim in aims) == {"step": 5, "save": 5, "generation": 5, "recovery": 5}
    assert {aim.phase for aim in aims[:5]} == {"generation"}


@given(kills=st.integers(0, 40), seed=st.integers(0, 99), total=st.integers(2, 100), interval=st.integers(1, 20))
def test_every_aim_can_be_met_before_the_last_step(kills: int, seed: int, total: int, interval: int) -> None:
    aims = plan_aims(kills, seed=seed, total_steps=total, interval=interval)
    assert len(aims) == kills
    assert all(1 <= aim.reached < total for aim in aims if aim.phase != "generation")
    assert not aims or aims[0].phase != "recovery"


def test_a_save_is_aimed_at_only_while_one_is_in_flight() -> None:
    aim = Aim("save", 10, 0.0)
    assert not is_moment(aim, Marks(Phase.STEP, None, ("train", 12)), 1)
    assert not is_moment(aim, Marks(Phase.STEP, 5, ("train", 6)), 1)
    assert is_moment(aim, Marks(Phase.STEP, 10, ("train", 10)), 1)


def test_recovery_is_aimed_at_only_after_a_first_attempt() -> None:
    aim = Aim("recovery", 10, 0.0)
    assert not is_moment(aim, Marks(Phase.STARTING, None, None), 1)
    assert is_moment(aim, Marks(Phase.STARTING, None, None), 2)


def test_a_generation_that_is_over_is_not_waited_for() -> None:
    assert is_moment(Aim("generation", 7, 0.0), Marks(Phase.STEP, None, ("train", 1)), 2)


def test_lost_steps_count_from_the_base_of_the_next_attempt_that_loaded_one() -> None:
    base = CommitRef("train", 10, 1)
    records = [
        AttemptRecord(number=1, claim={}, has_base=True, base=None, end=None),
        AttemptRecord(number=2, claim={}, has_base=False, base=None, end=None),
        AttemptRecord(number=3, claim={}, has_base=True, base=base, end=None),
    ]
    assert lost_steps(Kill(1, "local/a", "step", 14, None), records) == 4
    assert lost_steps(Kill(2, "local/b", "recovery", None, None), records) is None
    assert lost_steps(Kill(3, "local/c", "step", 14, None), records) is None
