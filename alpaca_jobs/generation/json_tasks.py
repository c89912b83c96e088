"""The chat form of Alpaca's request: the same requirements, and the tasks as JSON instead of a numbered list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from alpaca_jobs.generation.encode import requirements
from alpaca_jobs.generation.parse import MALFORMED, ParsedAnswer, ParsedTask
from alpaca_jobs.generation.seeds import NO_INPUT, SeedTask

_FIELDS = ("instruction", "input", "output")
_TASK = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in _FIELDS},
    "required": list(_FIELDS),
    "additionalProperties": False,
}
TASKS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"tasks": {"type": "array", "items": _TASK}},
    "required": ["tasks"],
    "additionalProperties": False,
}
"""JSON schema of an answer, strict: every field is there, and no others."""


def encode_json_prompt(tasks: Sequence[SeedTask], *, num_tasks: int) -> str:
    """Return the prompt of one request; `num_tasks` counts those shown, as in the list's own form."""
    shown = [{"instruction": task.instruction, "input": task.input, "output": task.output} for task in tasks]
    listed = json.dumps({"tasks": shown}, ensure_ascii=False, indent=1)
    return (
        f"{requirements(num_tasks)}{listed}\n\nWrite the {num_tasks - len(tasks)} tasks that are missing, as JSON in "
        'the same form: {"tasks": [...]}. Leave "input" empty for a task without one.'
    )


def parse_json_answer(text: str) -> ParsedAnswer:
    """Return the tasks of an answer; a cut-off one still gives the tasks before the cut.

    Pieces that are no task are counted as malformed, and so is an answer that holds no list of tasks at all.
    """
    start = text.find("[", text.find('"tasks"') + 1)
    if start < 0:
        return ParsedAnswer((), {MALFORMED: 1})
    decoder, tasks, num_broken, index = json.JSONDecoder(), [], 0, 0
    place: int | None = start + 1
    while (place := _next_object(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, place)
        except ValueError:
            num_broken += 1
            break
        task = _task(value, index)
        index += 1
        if task is None:
            num_broken += 1
        else:
            tasks.append(task)
    return ParsedAnswer(tuple(tasks), {MALFORMED: num_broken} if num_broken else {})


def _next_object(text: str, place: int | None) -> int | None:
    place = place or 0
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place if place < len(text) and text[place] == "{" else None


def _task(value: Any, index: int) -> ParsedTask | None:
    if not isinstance(value, dict) or not all(isinstance(value.get(name, ""), str) for name in _FIELDS):
        return None
    instruction, given, output = (str(value.get(name, "")).strip() for name in _FIELDS)
    return ParsedTask(index, instruction, "" if given.lower() == NO_INPUT else given, output) if instruction else None
