"""Shapes of instruction data: each is told from the others, read, and written back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.formats import read_examples, render_examples
from alpaca_jobs.data.record_files import Record
from alpaca_jobs.data.stream_writing import write_table
from alpaca_jobs.errors import DataError

FORMATS = ("alpaca", "self-instruct", "sharegpt", "openai")
ALPACA = [
    {"instruction": "Sort.", "input": "b a", "output": "a b"},
    {"instruction": "Sort.", "input": "d c", "output": "c d"},
    {"instruction": "Say hällo.", "input": "", "output": "Hällo {you}."},
]
CHAT = {
    "id": "c1",
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Bye"},
        {"from": "gpt", "value": ""},
    ],
}


def records(*bodies: dict[str, Any]) -> list[Record]:
    return [Record(f"file line {number}", body) for number, body in enumerate(bodies, start=1)]


def through(bodies: list[dict[str, Any]], *shapes: str) -> list[dict[str, Any]]:
    for shape in shapes:
        bodies = render_examples(read_examples(records(*bodies)), shape)
    return bodies


def test_alpacas_rows_survive_self_instructs_shape_where_instances_share_an_instruction() -> None:
    grouped = through(ALPACA, "self-instruct")
    assert [(one["instruction"], len(one["instances"])) for one in grouped] == [("Sort.", 2), ("Say hällo.", 1)]
    assert through(grouped, "alpaca") == ALPACA


def test_conversations_survive_the_way_there_and_back() -> None:
    messages = through([CHAT], "openai")
    assert [one["role"] for one in messages[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    back = through(messages, "sharegpt")
    assert back == [{**CHAT, "id": "chat_0"}], "OpenAI's shape has no place for an id"
    assert through([CHAT], "sharegpt") == [CHAT]


@pytest.mark.parametrize("shape", FORMATS)
def test_every_shape_can_be_read_again_and_says_the_same(shape: str) -> None:
    spoken = [[turn.text for turn in one.turns] for one in read_examples(records(*through(ALPACA, shape)))]
    assert spoken == [["Sort.\n\nb a", "a b"], ["Sort.\n\nd c", "c d"], ["Say hällo.", "Hällo {you}."]]


def test_a_conversation_does_not_fit_into_one_task_and_is_not_cut_to_fit() -> None:
    with pytest.raises(DataError, match=r"'c1' has 5 turns \(system, user, assistant, user, assistant\)"):
        through([CHAT], "alpaca")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": "x"}, "file line 1 is of no shape known here; its fields are: text"),
        ({"conversations": []}, "should be a list of turns"),
        ({"conversations": [{"from": "dog", "value": "wuff"}]}, "turn 1: 'from' is 'dog', which is nobody known here"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "and says nothing, and turns are text here",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1: 'content' is None, but a string is wanted"),
        ({"instruction": "x", "instances": "y"}, "'instances' should be a list"),
        ({"output": "y"}, "has no 'instruction'"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(body: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said.replace("(", r"\(")):
        read_examples(records(body))


ROWS = [
    {"id": "r1", "instruction": "Sort.\n\nBy length.", "input": "b a", "output": "a b"},
    {"id": "r2", "instruction": "Say hällo.", "input": "", "output": "Hällo {you}."},
    {"id": "r3", "instruction": "Sort.\n\nBy length.", "input": "d c", "output": ""},
]


def through_file(bodies: list[dict[str, Any]], shape: str, path: Path) -> list[dict[str, Any]]:
    """Convert, write, and read again, as `data convert --reversible` does twice."""
    write_table(path, render_examples(read_examples(records(*bodies)), shape, reversible=True))
    return [dict(one.fields) for one in load_table(str(path))]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_every_pair_of_shapes_round_trips_in_every_kind_of_file(
    tmp_path: Path, first: str, second: str, suffix: str
) -> None:
    there = through_file(ROWS, first, tmp_path / f"a{suffix}")
    over = through_file(there, second, tmp_path / f"b{suffix}")
    back = through_file(over, first, tmp_path / f"c{suffix}")
    assert back == there
    home = through_file(back, "alpaca", tmp_path / f"d{suffix}")
    assert home == ROWS


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_conversations_round_trip_with_their_ids(tmp_path: Path, suffix: str) -> None:
    messages = through_file([CHAT, {**CHAT, "id": "c2"}], "openai", tmp_path / f"a{suffix}")
    assert through_file(messages, "sharegpt", tmp_path / f"b{suffix}") == [CHAT, {**CHAT, "id": "c2"}]


def test_without_reversible_a_shape_has_its_own_fields_alone() -> None:
    assert set(through(ROWS, "openai")[0]) == {"messages"}
    assert set(through(ROWS, "sharegpt")[0]) == {"id", "conversations"}
    assert set(through(ROWS, "alpaca")[0]) == {"instruction", "input", "output"}


def test_fields_that_do_not_say_what_the_chat_says_are_not_believed() -> None:
    (example,) = read_examples(records({**CHAT, "instruction": "Something else", "input": ""}))
    assert example.input is None
