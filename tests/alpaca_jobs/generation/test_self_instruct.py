"""Self-Instruct: its forms read and written, its plan the same however answers arrive, its filters."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import DataError
from alpaca_jobs.generation import self_instruct_forms as forms
from alpaca_jobs.generation.completer import UNUSABLE, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.offline_composer import compose_answer
from alpaca_jobs.generation.rouge import f_measure
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.self_instruct import SelfInstruct
from alpaca_jobs.spec import DataSpec

SEEDS = load_seed_tasks("builtin")


def data(**changes: Any) -> DataSpec:
    return DataSpec.model_validate({"recipe": "self-instruct", "teacher": "offline", "num_rows": 120, **changes})


def answer(request: TeacherRequest, text: str | None = None, finish_reason: str = "stop") -> TeacherAnswer:
    if text is None:
        text, finish_reason = compose_answer(request.prompt, bytes.fromhex(request.digest))
    return TeacherAnswer(request.number, request.digest, text, finish_reason, 1, 1, 0.0, 0, 0.0)


def run(recipe: SelfInstruct, first: int = 1) -> tuple[list[TeacherAnswer], list[Row]]:
    answers, rows = [], []
    while not recipe.is_done:
        request = recipe.request(first + len(answers))
        assert request is not None
        answers.append(answer(request))
        rows += recipe.consume(answers[-1]).rows
    return answers, rows


def test_a_run_ends_with_its_rows_from_unlike_instructions_of_both_kinds() -> None:
    recipe = SelfInstruct(data(), SEEDS)
    answers, rows = run(recipe)
    assert len(rows) == 120
    instructions = list(dict.fromkeys(row.instruction for row in rows))
    assert len(instructions) < len(rows), "an instruction may have several instances"
    assert max(sum(row.instruction == one for row in rows) for one in instructions) <= 5
    assert {"Positive", "Negative"} & {row.output for row in rows}
    assert len({(row.instruction, row.input, row.output) for row in rows}) == len(rows)
    prompts = [recipe.request(one.number).prompt for one in answers]  # type: ignore[union-attr]
    assert {"classification?" in prompt for prompt in prompts} == {True, False}


def test_every_list_shows_six_of_people_and_two_of_the_teacher_once_there_are_some() -> None:
    recipe = SelfInstruct(data(num_rows=2000), SEEDS)
    by_people = {re.sub(r"\s+", " ", seed.instruction).strip().rstrip(":") for seed in SEEDS}
    answers, _ = run(recipe)
    lists = [recipe.request(one.number).prompt for one in answers]  # type: ignore[union-attr]
    shown = [re.findall(r"^\d+\. (.+)$", prompt, re.M) for prompt in lists if prompt.startswith("Continue this list")]
    assert {len(texts) for texts in shown} == {8}
    counts = [sum(text in by_people for text in texts) for texts in shown]
    assert counts[:64] == [8] * 64
    assert set(counts[64:]) == {6}
    assert len({tuple(texts) for texts in shown}) == len(shown)


def test_the_plan_depends_on_consumed_answers_alone_and_a_new_attempt_replays_them() -> None:
    whole = SelfInstruct(data(), SEEDS)
    answers, rows = run(whole)
    for stop in (1, len(answers) // 3, len(answers) - 1):
        resumed = SelfInstruct(data(), SEEDS, answers[:stop])
        again, rest = run(resumed, stop + 1)
        assert again == answers[stop:]
        done = [row for row in rows if row.request <= stop]
        assert done + rest == rows


def test_a_request_is_not_there_before_what_it_depends_on() -> None:
    recipe = SelfInstruct(data(num_rows=8), SEEDS)
    assert recipe.request(2) is not None, "8 rows are expected from two lists"
    assert recipe.request(3) is None
    recipe.consume(answer(recipe.request(1), " Name three uses of vinegar.\n10. Sort these words by length."))  # type: ignore[arg-type]
    third = recipe.request(3)
    assert third is not None
    assert "Name three uses of vinegar" in third.prompt
    assert third.temperature == 0.0


def test_answers_out_of_order_or_to_other_requests_are_refused() -> None:
    recipe = SelfInstruct(data(), SEEDS)
    first, second = recipe.request(1), recipe.request(2)
    assert first is not None
    assert second is not None
    with pytest.raises(ValueError, match="consume in number order"):
        recipe.consume(answer(second))
    with pytest.raises(DataError, match="belongs to another request"):
        recipe.consume(TeacherAnswer(1, second.digest, "x", "stop", 1, 1, 0.0, 0))


@pytest.mark.parametrize("finish_reason", ["content_filter", UNUSABLE])
def test_answers_that_are_none_are_counted_and_asked_for_anew_by_other_requests(finish_reason: str) -> None:
    """Whatever share of the answers is lost, the rows come together all the same."""
    recipe, dice, number, rows = SelfInstruct(data(num_rows=40), SEEDS), random.Random(1), 0, 0
    while not recipe.is_done:
        number += 1
        request = recipe.request(number)
        assert request is not None
        given = answer(request, "", finish_reason) if dice.random() < 0.5 else answer(request)
        rows += len(recipe.consume(given).rows)
        assert number < 2000
    assert rows == 40


def test_instructions_pass_the_filters_and_the_comparison_with_seeds_and_each_other() -> None:
    recipe = SelfInstruct(data(), SEEDS)
    first = recipe.request(1)
    assert first is not None
    text = (
        " Explain why leaves fall in autumn.\n10. Draw a picture of a cat.\n11. Stop it.\n"
        f"12. {SEEDS[0].instruction}\n13. explain why the leaves fall in autumn.\n14. Cut off in the mid"
    )
    consumed = recipe.consume(answer(first, text, "length"))
    assert consumed.drops == {"banned_word": 1, "too_short": 1, "similar": 2, "cut_off": 1}
    assert consumed.is_useful
    assert float(f_measure(6, 6, 7)) > 0.7


TWO = "Example 1\nInput: a\nOutput: 1\nExample 2\nInput: {}\nOutput: {}"
INSTANCES = {
    "numbered examples": (
        "Example 1\nInput: a b\nOutput: 1\nExample 2\nList: c d\nOutput: 2\n", False, "stop",
        [("a b", "1"), ("List: c d", "2")], {},
    ),
    "output alone": ("Output: yes it is\nInput: no", False, "stop", [("", "yes it is\nInput: no")], {}),
    "no format at all": ("Yes it is.", False, "stop", [], {"no_instance": 1}),
    "cut off": (TWO.format("b", "tw"), False, "length", [("a", "1")], {"cut_off": 1}),
    "nothing but a cut": ("Example 1\nInput: a\nOut", False, "length", [], {"cut_off": 1}),
    "more than wanted": (
        "".join(f"Example {n}\nInput: {n}\nOutput: x{n}\n" for n in range(7)), False, "stop",
        [(str(n), f"x{n}") for n in range(5)], {"over_max_instances": 2},
    ),
    "empty output": (TWO.format("b", ""), False, "stop", [("a", "1")], {"no_output": 1}),
    "its own answer": (TWO.format("b", "b"), False, "stop", [("a", "1")], {"output_is_input": 1}),
    "a colon at the end": (TWO.format("b:", "2"), False, "stop", [("a", "1")], {"ends_with_colon": 1}),
    "said twice": (TWO.format("a", "1"), False, "stop", [("a", "1")], {"repeated_instance": 1}),
    "two answers to one": (TWO.format("a", "2"), False, "stop", [], {"contradictory": 2}),
    "labels first": (
        "Class label: Good\nIt was fine.\nSecond line\nClass label: Bad\nInput: It was not.", True, "stop",
        [("It was fine.\nSecond line", "Good"), ("It was not.", "Bad")], {},
    ),
    "labels alone": ("Class label: A\nClass label: B", True, "stop", [("", "A"), ("", "B")], {}),
    "a label cut off": ("Class label: A\nx\nClass label: B\nha", True, "length", [("x", "A")], {"cut_off": 1}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "is_classification", "finish", "pairs", "drops"), INSTANCES.values(), ids=INSTANCES)
def test_instances_are_read_and_filtered_as_in_the_original(
    text: str, is_classification: bool, finish: str, pairs: list[tuple[str, str]], drops: dict[str, int]
) -> None:
    found, dropped = forms.parse_instances(
        text, finish, is_classification=is_classification, max_instances=5, as_json=False
    )
    assert [(one.input, one.output) for one in found] == pairs
    assert dropped == drops


@pytest.mark.parametrize(
    ("key", "text", "pairs"),
    [
        ("empty_output", TWO.format("b", ""), [("a", "1"), ("b", "")]),
        ("output_is_input", TWO.format("b", "b"), [("a", "1"), ("b", "b")]),
        ("ends_with_colon", TWO.format("b:", "2"), [("a", "1"), ("b:", "2")]),
        ("repeated_instance", TWO.format("a", "1"), [("a", "1"), ("a", "1")]),
        ("contradictory", TWO.format("a", "2"), [("a", "1"), ("a", "2")]),
    ],
)
def test_every_filter_on_instances_can_be_switched_off(key: str, text: str, pairs: list[tuple[str, str]]) -> None:
    filters = data(filters={key: "keep"}).filters
    found, dropped = forms.parse_instances(
        text, "stop", is_classification=False, max_instances=5, as_json=False, filters=filters
    )
    assert [(one.input, one.output) for one in found] == pairs
    assert dropped == {}


@pytest.mark.parametrize(
    ("text", "finish", "drops"),
    [(" Yes", "stop", {}), ("No.", "stop", {}), ("It depends", "stop", {"no_verdict": 1}),
     ("", UNUSABLE, {"unusable": 1}), ("", "content_filter", {"refused": 1})],
)  # fmt: skip
def test_a_verdict_that_is_none_is_counted_and_taken_for_a_no(text: str, finish: str, drops: dict[str, int]) -> None:
    recipe = SelfInstruct(data(num_rows=4), SEEDS)
    first = recipe.request(1)
    assert first is not None
    recipe.consume(answer(first, " Name three uses of vinegar."))
    verdict = recipe.request(2)
    assert verdict is not None
    consumed = recipe.consume(answer(verdict, text, finish))
    assert (consumed.drops, consumed.is_useful) == (drops, True)
    asked = [request.prompt for number in range(3, 9) if (request := recipe.request(number)) is not None]
    assert any("every label" in prompt for prompt in asked) is (text == " Yes")


def test_the_classification_test_shows_twelve_yes_and_nineteen_no() -> None:
    prompt = forms.classification_prompt("Is it red?", SEEDS, as_json=False)
    assert (prompt.count("classification? Yes"), prompt.count("classification? No")) == (12, 19)
    assert prompt.endswith("Task: Is it red?\nIs it classification?")
    for text, verdict in ((" Yes", True), ("yes, it is", True), (" No", False), ("", False), ("Sure", False)):
        assert forms.parse_classification(text, as_json=False) is verdict


def test_structured_answers_are_read_also_from_a_fence() -> None:
    fenced = '```json\n{"instructions": ["Do  this now.", 5, ""]}\n```'
    assert forms.parse_instructions(fenced, "stop", as_json=True) == ["Do this now."]
    assert forms.parse_instructions("no", "stop", as_json=True) is None
    assert forms.parse_classification('{"is_classification": true}', as_json=True)
    text = json.dumps({"instances": [{"input": "a", "output": "1"}, {"input": None, "output": "2"}, "x"]})
    found, _ = forms.parse_instances(text, "stop", is_classification=True, max_instances=5, as_json=True)
    assert [(one.input, one.output) for one in found] == [("a", "1"), ("", "2")]
    for kind in ("instructions", "classification", "instances"):
        assert forms.schema_of(kind)["additionalProperties"] is False


def test_the_job_file_knows_the_recipes_own_defaults() -> None:
    spec = data()
    assert (spec.num_prompt_seeds, spec.num_prompt_rows, spec.max_tasks_per_request) == (6, 2, 16)
    assert data(num_prompt_seeds=4).num_prompt_seeds == 4
    assert DataSpec.model_validate(spec.model_dump(by_alias=True)) == spec
    alpaca = DataSpec.model_validate({"teacher": "offline"})
    assert (alpaca.num_prompt_seeds, alpaca.max_tasks_per_request) == (3, 20)
