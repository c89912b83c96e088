"""Plays of a run on machines that may go away: exact where nothing is random, and right on average where it is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cluster.simulation import Course, Quantiles, play, quantiles

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
