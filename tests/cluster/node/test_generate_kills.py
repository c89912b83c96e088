"""Rows survive SIGKILL at any moment: the same rows, only what was in flight asked again, the budget never crossed.

pytest tests/cluster/node/test_generate_kills.py --row-kills 50      # as often as issue 5 asks; 8 otherwise
"""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.generation.offline_teacher import serve

_helper = runpy.run_path(str(Path(__file__).with_name("row_run.py")), run_name="row_run")
RowRun, CAPACITY, read_log, billed_usd = (_helper[name] for name in ("RowRun", "CAPACITY", "read_log", "billed_usd"))
CENT = 1e-9  # sums of the same numbers in another order
ROWS_PER_KILL = {"alpaca": 40, "self-instruct": 10}


@pytest.fixture
def num_kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--row-kills"))


@pytest.fixture(scope="module")
def undisturbed_rows(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """By recipe: the rows of a run that nobody disturbs; made once for all tests that ask for them."""
    num_kills = int(request.config.getoption("--row-kills"))

    @cache
    def make(recipe: str) -> Any:
        folder = tmp_path_factory.mktemp("undisturbed")
        with serve() as server:
            run = RowRun(folder, "undisturbed", server.base_url, ROWS_PER_KILL[recipe] * num_kills, num_kills, recipe)
            assert run.start().wait() == 0
        return run.rows()

    return make


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", ["alpaca", "self-instruct"])
def test_killed_at_random_the_rows_are_those_of_an_undisturbed_run(
    tmp_path: Path, num_kills: int, recipe: str, undisturbed_rows: Callable[[str], Any]
) -> None:
    num_rows, dice = ROWS_PER_KILL[recipe] * num_kills, random.Random(num_kills)
    log = tmp_path / "asked.jsonl"
    with serve(latency_s=0.15, log=log) as server:
        killed = RowRun(tmp_path, "killed", server.base_url, num_rows, 0.2 * num_kills, recipe)
        for _ in range(num_kills):
            few = dice.choice((0, 1, 2, 5))
            was_killed = killed.kill_after(killed.start(), dice.uniform(0.0, 0.4), num_answers=few)
            assert was_killed, "it was over before its last kill"
            assert billed_usd(read_log(log)) <= killed.spent_usd() + CENT <= killed.budget_usd
        assert killed.start().wait() == 0, (tmp_path / "killed.log").read_text()[-2000:]
        asked = read_log(log)
    assert len(killed.rows()) == num_rows
    assert killed.rows() == undisturbed_rows(recipe)
    assert billed_usd(asked) <= killed.spent_usd() + CENT <= killed.budget_usd
    _check_repeats(killed, asked, num_kills)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("recipe", ["alpaca", "self-instruct"])
def test_killed_at_random_in_batches_nothing_is_ever_paid_twice(
    tmp_path: Path, num_kills: int, recipe: str, undisturbed_rows: Callable[[str], Any]
) -> None:
    """A batch goes on without us, so that not even what was under way is asked again."""
    num_rows, dice, budget_usd = ROWS_PER_KILL[recipe] * num_kills, random.Random(num_kills), 0.5 * num_kills
    log = tmp_path / "asked.jsonl"
    with serve(log=log, state=tmp_path / "provider", batch_s=0.4) as server:
        killed = RowRun(tmp_path, "killed", server.base_url, num_rows, budget_usd, recipe, batch_requests=6)
        num_killed = 0
        while num_killed < num_kills:
            # Half of them while it only waits for what attempts before it have sent.
            if not killed.kill_after(killed.start(), dice.uniform(0.0, 0.8), reserved=dice.random() < 0.5):
                break
            num_killed += 1
            assert billed_usd(read_log(log), share=0.5) <= killed.spent_usd() + CENT <= killed.budget_usd
        assert num_killed >= num_kills / 2, "it was over before it was killed often enough"
        assert killed.start().wait() == 0, (tmp_path / "killed.log").read_text()[-2000:]
        asked = [entry["prompt"] for entry in read_log(log) if entry["status"] == 200]
    assert len(killed.rows()) == num_rows
    assert killed.rows() == undisturbed_rows(recipe)
    assert len(asked) == len(set(asked))


def _check_repeats(run: Any, asked: list[dict[str, Any]], num_kills: int) -> None:
    """No request was asked after its answer had been stored, and no more were asked twice than were in flight."""
    numbers = run.prompt_hashes()
    answers = [entry for entry in asked if entry["status"] == 200]
    for entry in answers:
        stored_at = run.answered.get(numbers[entry["prompt"]])
        assert stored_at is None or entry["t"] < stored_at, f"request {numbers[entry['prompt']]} was asked again"
    repeated = len(answers) - len({entry["prompt"] for entry in answers})
    assert repeated <= num_kills * CAPACITY
    assert run.answered, "no answer was stored before the last kill, so that this proved nothing"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_small_budget_slows_and_then_ends_generation_and_is_never_crossed(tmp_path: Path) -> None:
    log = tmp_path / "asked.jsonl"
    with serve(latency_s=0.02, log=log) as server:
        run = RowRun(tmp_path, "poor", server.base_url, num_rows=5000, budget_usd=0.5)
        dice = random.Random(5)
        for _ in range(2):
            run.kill_after(run.start(), dice.uniform(0.0, 0.2))
        assert run.start().wait() == 4
        assert "limits.teacher_max_usd is 0.5" in (tmp_path / "poor.log").read_text()
        asked = read_log(log)
        assert 0.01 < billed_usd(asked) <= run.spent_usd() + CENT <= 0.5 + 2 * CENT
        have = run.rows()
        assert have, "what was paid for is committed before the stage gives up"
        assert run.start().wait() == 4
    assert run.rows() == have
    assert len(read_log(log)) == len(asked), "nothing was asked once the budget was used up"
