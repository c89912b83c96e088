"""Alpaca's tasks as JSON: what is asked, what is read, and what a cut-off or broken answer still gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from alpaca_jobs.generation.completer import TeacherAnswer
from alpaca_jobs.generation.json_tasks import TASKS_SCHEMA, encode_json_prompt, parse_json_answer
from alpaca_jobs.generation.pipeline import Pipeline
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.spec import DataSpec

SEEDS = load_seed_tasks("builtin")
TASK = {"instruction": "Name three bright colours.", "input": "", "output": "Red, green and blue."}


def test_the_prompt_states_the_requirements_and_shows_tasks_in_the_form_it_asks_for() -> None:
    prompt = encode_json_prompt(SEEDS[:3], num_tasks=20)
    assert "Write a list of 20 varied tasks" in prompt
    assert "Write the 17 tasks that are missing" in prompt
    assert json.dumps(SEEDS[2].instruction, ensure_ascii=False) in prompt
    assert "###" not in prompt


@pytest.mark.parametrize(
    ("text", "count", "drops"),
    [
        (json.dumps({"tasks": [TASK, TASK]}), 2, {}),
        ("Here they are:\n```json\n" + json.dumps({"tasks": [TASK]}, indent=2) + "\n```", 1, {}),
        (json.dumps({"tasks": [TASK, TASK]})[:-20], 1, {"malformed": 1}),
        (json.dumps({"tasks": [TASK, {"instruction": 5}, {"output": "x"}, TASK]}), 2, {"malformed": 2}),
        ("I cannot do that.", 0, {"malformed": 1}),
        ('{"tasks": []}', 0, {}),
        (json.dumps([TASK]), 1, {}),
    ],
)
def test_answers_are_read_as_far_as_they_go(text: str, count: int, drops: dict[str, int]) -> None:
    parsed = parse_json_answer(text)
    assert (len(parsed.tasks), dict(parsed.drops)) == (count, drops)
    for task in parsed.tasks:
        assert (task.instruction, task.input, task.output) == tuple(TASK.values())


def test_the_pipeline_asks_with_the_schema_and_makes_rows_of_the_answer() -> None:
    teacher: dict[str, Any] = {"model": "m", "answer_format": "json", "api_key_env": None}
    pipeline = Pipeline(DataSpec.model_validate({"teacher": teacher, "num_rows": 10}), SEEDS)
    request = pipeline.request(1)
    assert (request.schema, request.stop) == (TASKS_SCHEMA, ())
    text = json.dumps({"tasks": [TASK, {**TASK, "instruction": "Draw a picture of a cat."}]})
    consumed = pipeline.consume(TeacherAnswer(1, request.digest, text, "stop", 1, 1, 0.0, 0))
    assert [row.instruction for row in consumed.rows] == ["Name three bright colours."]
    assert consumed.drops == {"banned_word": 1}


def test_json_needs_the_chat_interface() -> None:
    with pytest.raises(ValidationError, match="only the chat interface has"):
        DataSpec.model_validate({"teacher": {"model": "m", "answer_format": "json", "api": "completions"}})
