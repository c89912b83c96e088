"""Plays of a run on machines that may go away: exact where nothing is random, and right on average where it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.course import Course, Expected, expected
from cluster.price.simulation import Quantiles, play, quantiles

CALM = Course(
    work_s=7200, work_spread=0.0, start_s=600, restart_s=900, away_s=300, save_interval_s=600, losses_per_hour=0.0
)


def test_undisturbed_run_takes_start_and_work() -> None:
    for game in play(CALM, draws=5, seed=1):
        assert (game.wall_s, game.billed_s, game.losses) == (7800, 7800, 0)


def test_same_seed_plays_the_same_games_and_another_does_not() -> None:
    course = replace(CALM, losses_per_hour=0.5)
    assert play(course, draws=20, seed=1) == play(course, draws=20, seed=1)
    assert play(course, draws=20, seed=1) != play(course, draws=20, seed=2)


def test_losses_cost_time_and_money_but_waiting_is_not_billed() -> None:
    games = play(replace(CALM, losses_per_hour=0.5), draws=500, seed=0)
    lost = [game for game in games if game.losses]
    assert lost
    for game in lost:
        assert game.billed_s > 7800 - 600
        assert game.wall_s > game.billed_s
    for game in games:
        if not game.losses:
            assert game.wall_s == game.billed_s


def test_more_frequent_saves_lose_less_work() -> None:
    course = replace(CALM, losses_per_hour=0.5)
    means = [
        sum(game.billed_s for game in play(replace(course, save_interval_s=interval), draws=500, seed=0)) / 500
        for interval in (60, 600, 3600)
    ]
    assert means == sorted(means)


def test_mean_number_of_losses_is_hazard_times_time_held() -> None:
    games = play(replace(CALM, losses_per_hour=0.5), draws=4000, seed=0)
    held_hours = sum(game.billed_s for game in games) / 3600
    assert sum(game.losses for game in games) / held_hours == pytest.approx(0.5, rel=0.05)


def test_every_second_machine_is_in_another_region_than_the_store_and_saves_from_there() -> None:
    course = replace(CALM, start_s=0, restart_s=0, save_interval_s=7200, losses_per_hour=0.5)
    games = play(course, draws=300, seed=0)  # the only save is the last step's
    assert {game.losses for game in games} >= {0, 1, 2, 3}
    for game in games:
        assert (game.saves_away, game.losses_away) == (game.losses % 2, (game.losses + 1) // 2)


def test_what_was_saved_before_a_loss_is_not_saved_again_elsewhere() -> None:
    course = replace(CALM, start_s=0, restart_s=20_000, save_interval_s=4000, losses_per_hour=0.1)
    once = [game for game in play(course, draws=300, seed=0) if game.losses == 1]
    had_saved = [game for game in once if game.billed_s > 20_000]
    assert 0 < len(had_saved) < len(once)
    assert {game.saves_away for game in had_saved} == {1}
    assert {game.saves_away for game in once if game.billed_s < 20_000} == {2}


def test_run_that_is_lost_before_every_save_never_finishes() -> None:
    (game,) = play(replace(CALM, losses_per_hour=3600.0, save_interval_s=7200), draws=1, seed=0)
    assert math.isinf(game.wall_s)
    assert math.isinf(game.billed_s)


def test_spread_of_the_speed_is_lognormal_around_the_median() -> None:
    games = play(replace(CALM, start_s=0, work_spread=0.28), draws=4000, seed=0)
    found = quantiles([game.wall_s for game in games])
    assert found.p50 == pytest.approx(7200, rel=0.02)
    assert found.p90 / found.p50 == pytest.approx(math.exp(1.2816 * 0.28), rel=0.03)
    assert found.p50 / found.p10 == pytest.approx(math.exp(1.2816 * 0.28), rel=0.03)


def test_quantiles_are_values_that_occurred() -> None:
    assert quantiles(list(range(1, 11))) == Quantiles(1, 5, 9)
    assert quantiles([7.0]) == Quantiles(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="quantiles of nothing"):
        quantiles([])


COURSES = st.builds(
    Course,
    work_s=st.floats(60, 20_000),
    work_spread=st.sampled_from([0.0, 0.3]),
    start_s=st.floats(0, 900),
    restart_s=st.floats(900, 1800),  # a state is larger than the weights it came from
    away_s=st.floats(0, 600),
    save_interval_s=st.floats(30, 3600),
    losses_per_hour=st.floats(0, 1.0),
    finish_s=st.floats(0, 300),
)


@settings(max_examples=50, deadline=None)
@given(COURSES)
def test_losses_never_make_any_single_play_shorter_or_cheaper(course: Course) -> None:
    """The n-th plays of two courses share their dice, so they can be compared one by one."""
    calm = play(replace(course, losses_per_hour=0.0), draws=20, seed=3)
    for quiet, rough in zip(calm, play(course, draws=20, seed=3), strict=True):
        assert rough.billed_s >= quiet.billed_s - 1e-6
        assert rough.wall_s >= rough.billed_s - 1e-6


@settings(max_examples=30, deadline=None)
@given(COURSES, st.sampled_from(["losses_per_hour", "work_s", "start_s", "restart_s", "finish_s"]), st.floats(1, 3))
def test_more_of_anything_bad_is_never_cheaper_on_average(course: Course, name: str, times: float) -> None:
    worse = replace(course, **{name: getattr(course, name) * times})
    assert expected(worse).billed_s >= expected(course).billed_s * (1 - 1e-9)
    assert expected(worse).wall_s >= expected(course).wall_s * (1 - 1e-9)


@settings(max_examples=15, deadline=None)
@given(COURSES)
def test_means_of_plays_are_those_of_the_closed_form(course: Course) -> None:
    """Two ways to the same number: dice, and exponentials."""
    sure = replace(course, work_spread=0.0)
    games = play(sure, draws=3000, seed=1)
    mean = expected(sure)
    sigma_s = math.sqrt(sum((game.billed_s - mean.billed_s) ** 2 for game in games)) / len(games)
    few_s = 8 * (course.restart_s + course.save_interval_s + course.finish_s) / len(games)  # too rare for a sigma
    assert sum(game.billed_s for game in games) / len(games) == pytest.approx(mean.billed_s, abs=5 * sigma_s + few_s)


def test_closed_form_of_a_calm_course_is_its_sum() -> None:
    assert expected(replace(CALM, finish_s=60)) == Expected(7860, 7860, 0.0)


def test_closed_form_of_a_hopeless_course_is_without_end() -> None:
    assert expected(replace(CALM, losses_per_hour=1e7)) == Expected(math.inf, math.inf, math.inf)


def test_machine_lost_while_exporting_exports_again_and_trains_no_more() -> None:
    course = replace(CALM, work_s=600, start_s=0, restart_s=0, away_s=0, finish_s=3600, losses_per_hour=1.0)
    for game in play(course, draws=200, seed=0):
        assert game.billed_s >= 4200
    late = [game for game in play(course, draws=200, seed=0) if game.losses == 1 and game.billed_s > 600 + 3600]
    assert late
    assert all(game.billed_s < 600 + 2 * 3600 + 600 for game in late)


def test_run_lost_before_its_first_save_starts_from_the_weights_again() -> None:
    course = replace(CALM, start_s=10, restart_s=10_000, save_interval_s=7200, losses_per_hour=0.5)
    lost = [game for game in play(course, draws=100, seed=0) if game.losses == 1]
    assert lost
    assert all(game.billed_s < 2 * 7210 for game in lost)
