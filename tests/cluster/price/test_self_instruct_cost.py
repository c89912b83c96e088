"""What Self-Instruct will ask, held against the recipe itself: counts, sizes of prompts, rounds of batches."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.self_instruct import SelfInstruct
from alpaca_jobs.spec import DataSpec
from cluster.price.self_instruct_cost import rows_per_instruction_seen
from cluster.price.teacher_cost import TeacherAssumptions, estimate_teacher

SEEDS = load_seed_tasks("builtin")
INSTANCES = "Example 1\nInput: {0} a\nOutput: {0} b\n\nExample 2\nInput: {0} c\nOutput: {0} d\n"


def data(**changes: Any) -> DataSpec:
    teacher = {"model": "gpt-4o-mini", **changes.pop("teacher", {})}
    return DataSpec.model_validate({"recipe": "self-instruct", "teacher": teacher, **changes})


def kind_of(request: TeacherRequest) -> str:
    if request.prompt.endswith("classification?"):
        return "classification tests"
    return "instruction lists" if request.prompt.startswith("Continue this list") else "instances"


def answer(request: TeacherRequest) -> TeacherAnswer:
    """A teacher whose every instruction is unlike all others, each with two instances."""
    number = request.number
    places = range(9, 17)
    text = {
        "instruction lists": "\n".join(
            f"{place}. W{number}x{place} a{number}y{place} b{number}z{place} c{number}u{place}" for place in places
        ).removeprefix("9."),
        "classification tests": "No",
        "instances": INSTANCES.format(number),
    }[kind_of(request)]
    return TeacherAnswer(number, request.digest, text, "stop", 1, 1, 0.0, 0, 0.0)


def play(spec: DataSpec) -> tuple[list[TeacherRequest], int]:
    """All requests until the rows are there, and how many rounds they take when a round holds all that are planned."""
    recipe, asked, rounds = SelfInstruct(spec, SEEDS), [], 0
    while not recipe.is_done:
        rounds += 1
        planned = []
        while (request := recipe.request(len(asked) + len(planned) + 1)) is not None:
            planned.append(request)
        for request in planned:
            recipe.consume(answer(request))
        asked += planned
    return asked, rounds


def test_every_kind_of_request_is_counted_and_sized_as_the_recipe_asks_it() -> None:
    spec = data(num_rows=480, plan_ahead=4)
    asked, _ = play(spec)
    found = estimate_teacher(spec, TeacherAssumptions(accept_rate=1.0, rows_per_instruction=2.0))
    assert [one.name for one in found.stages] == ["instruction lists", "classification tests", "instances"]
    for stage in found.stages:
        sizes = [len(one.prompt) / 4 for one in asked if kind_of(one) == stage.name]
        assert len(sizes) == pytest.approx(stage.requests, rel=0.1), stage.name
        if stage.name != "instances":  # the teacher above has no classification tasks
            assert statistics.fmean(sizes) == pytest.approx(stage.prompt_tokens, rel=0.25), stage.name
    assert found.requests == sum(one.requests for one in found.stages)
    assert found.prompt_tokens == pytest.approx(sum(one.requests * one.prompt_tokens for one in found.stages))


def test_labels_first_and_input_first_are_sized_apart() -> None:
    (_, _, both) = estimate_teacher(data(num_rows=480)).stages
    inputs = [seed for seed in SEEDS if not seed.is_classification]
    (_, _, alone) = estimate_teacher(data(num_rows=480), seeds=inputs).stages
    assert both.prompt_tokens != pytest.approx(alone.prompt_tokens, rel=0.02)


def test_batches_wait_in_rounds_as_the_recipe_plans_them() -> None:
    spec = data(num_rows=480, plan_ahead=10, teacher={"batch_api": True})
    _, rounds = play(spec)
    prior = TeacherAssumptions(accept_rate=1.0, rows_per_instruction=2.0)
    found = estimate_teacher(spec, prior)
    assert found.rounds == pytest.approx(rounds, abs=1)
    assert found.rounds is not None
    assert found.seconds == found.rounds * 24 * 3600
    ahead = estimate_teacher(data(num_rows=480, plan_ahead=1000, teacher={"batch_api": True}), prior)
    assert ahead.rounds == 3, "a list, its tests, their instances"
    narrow = estimate_teacher(
        data(num_rows=480, plan_ahead=1000, teacher={"batch_api": True, "batch_requests": 15}), prior
    )
    assert narrow.rounds == 1 + 4 + 4, "60 requests at once"


def test_alpaca_in_batches_waits_once_for_every_four_files() -> None:
    spec = DataSpec.model_validate({"num_rows": 52_000, "teacher": {"model": "gpt-4o-mini", "batch_api": True}})
    found, live = estimate_teacher(spec), estimate_teacher(spec.model_copy(update={"teacher": data().teacher}))
    assert (found.rounds, found.seconds) == (2, 2 * 24 * 3600.0)
    assert found.cost_usd == pytest.approx((live.cost_usd or 0.0) / 2)
    assert live.rounds is None
    measured = estimate_teacher(spec, TeacherAssumptions(rows_per_second=2.0))
    assert (measured.rounds, measured.seconds) == (None, 26_000.0)


def test_a_limit_on_requests_cuts_every_kind() -> None:
    whole = estimate_teacher(data(num_rows=5000))
    half = estimate_teacher(data(num_rows=5000, max_requests=whole.requests // 2))
    assert half.requests == whole.requests // 2 == sum(one.requests for one in half.stages)
    assert half.rows == pytest.approx(2500, abs=1)
    assert half.prompt_tokens == pytest.approx(whole.prompt_tokens / 2, rel=0.01)


def test_what_a_run_had_of_a_request_comes_back_as_its_number_of_requests() -> None:
    spec = data(num_rows=10_000)
    rows = rows_per_instruction_seen(spec, rows_per_request=0.4, accept_rate=0.5)
    found = estimate_teacher(spec, TeacherAssumptions(rows_per_instruction=rows))
    assert found.requests == pytest.approx(10_000 / 0.4, rel=0.01)
    (_, tests, instances) = estimate_teacher(data(num_rows=10_000, max_instances=1)).stages
    assert tests.requests == instances.requests == 10_000
