"""Seed tasks: the built-in ones are good examples, both formats load, and what is wrong is said with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import DataError
from alpaca_jobs.generation.filters import drop_reason
from alpaca_jobs.generation.parse import ParsedTask
from alpaca_jobs.generation.seeds import load_seed_tasks, seed_warnings
from alpaca_jobs.generation.similarity import SimilarityIndex
from alpaca_jobs.spec import DataSpec
from alpaca_jobs.spec_filters import FiltersSpec


def test_there_are_over_a_hundred_varied_builtin_tasks() -> None:
    tasks = load_seed_tasks("builtin")
    assert len(tasks) >= 120
    assert len({task.instruction.split()[0] for task in tasks}) >= 50, "first words vary"
    with_input = sum(bool(task.input) for task in tasks)
    assert 0.3 * len(tasks) < with_input < 0.7 * len(tasks)
    assert sum(task.is_classification is True for task in tasks) >= 10
    assert all(len(task.output.split()) < 100 for task in tasks), "the prompt asks for outputs under 100 words"


def test_builtin_tasks_pass_our_own_filters_and_dedupe() -> None:
    index = SimilarityIndex()
    for task in load_seed_tasks("builtin"):
        assert drop_reason(ParsedTask(0, task.instruction, task.input, task.output), FiltersSpec()) is None, (
            task.instruction
        )
        assert index.offer(task.instruction) is None, task.instruction


def test_self_instruct_and_alpaca_files_give_the_same_tasks(tmp_path: Path) -> None:
    lines = [
        {"id": "s1", "instruction": "Do A", "instances": [{"input": "", "output": "x"}, {"input": "q", "output": "r"}]},
        {"id": "s2", "instruction": "Do B", "instances": [{"input": "y", "output": "z"}], "is_classification": True},
    ]
    self_instruct, alpaca, alpaca_lines = (tmp_path / name for name in ("s.jsonl", "a.json", "a.jsonl"))
    self_instruct.write_text("\n".join(json.dumps(line) for line in lines))
    rows = [
        {"instruction": "Do A", "input": "<noinput>", "output": "x"},
        {"instruction": "Do B", "input": "y", "output": "z"},
    ]
    alpaca.write_text(json.dumps(rows, indent=2))
    alpaca_lines.write_text("\n\n".join(json.dumps(row) for row in rows))
    expected = [("Do A", "", "x"), ("Do B", "y", "z")]
    for path in (self_instruct, alpaca, alpaca_lines):
        assert [(task.instruction, task.input, task.output) for task in load_seed_tasks(str(path))] == expected
    assert load_seed_tasks(str(self_instruct))[1].is_classification is True


def test_seed_tasks_load_from_a_uri(tmp_path: Path) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Do A", "output": "x"}')
    assert [task.instruction for task in load_seed_tasks(f"file://{path}")] == ["Do A"]
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        load_seed_tasks(f"file://{tmp_path}/missing.jsonl")


GOOD: dict[str, Any] = {"instruction": "Do A", "instances": [{"input": "", "output": "x"}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("hello", "line 1 is not JSON"),
        (json.dumps(GOOD) + "\n{'instruction': 'single quotes'}", "line 2 is not JSON"),
        ("[1, 2]", "item 1 is 1"),
        ('"text"', "line 1 is 'text', but a JSON object"),
        (json.dumps({**GOOD, "instances": []}), "line 1: 'instances' should be a list"),
        (json.dumps({**GOOD, "instances": ["x"]}), "line 1: 'instances' should be a list"),
        (json.dumps({**GOOD, "instances": [{"input": "", "output": None}]}), "first instance: 'output' is None"),
        (json.dumps({**GOOD, "instances": [{"input": 5, "output": "x"}]}), "first instance: 'input' is 5"),
        (json.dumps({**GOOD, "instruction": ""}), "'instruction' is empty"),
        (json.dumps({**GOOD, "is_classification": "no"}), "'is_classification' is 'no'"),
        (json.dumps({"task": "Do A"}), "line 1 has no 'instruction'; its fields are: task"),
        (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "instruction": " Do  A"}), "line 2 repeats the task of"),
    ],
)
def test_bad_seed_files_are_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "seeds.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_seed_tasks(str(path))
    assert words in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl does not exist \(looked for "):
        load_seed_tasks("nowhere.jsonl")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        load_seed_tasks(str(tmp_path))
    packed = tmp_path / "seeds.jsonl.gz"
    packed.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match="is not UTF-8 text: byte 1 is 0x8b"):
        load_seed_tasks(str(packed))


def test_seeds_without_a_kind_are_warned_of_where_the_recipe_shows_kinds(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(8)]))
    recipe = {"recipe": "self-instruct", "teacher": "offline"}
    (words,) = seed_warnings(DataSpec.model_validate({**recipe, "seed_tasks": str(path)}))
    assert "None of the 8 tasks" in words
    assert seed_warnings(DataSpec.model_validate(recipe)) == []
    assert seed_warnings(DataSpec.model_validate({"teacher": "offline", "seed_tasks": str(path)})) == []
