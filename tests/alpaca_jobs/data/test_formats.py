"""Shapes of instruction data: each is told from the others, read, and written back as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.formats import each_answer, read_examples, render_examples
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


def test_earlier_exchanges_and_a_system_text_of_a_row_make_it_a_conversation() -> None:
    """LLaMA-Factory's fields; empty ones, as its files and Parquet columns have them, leave a row what it is."""
    row = {"instruction": "Sort.", "input": "b a", "output": "a b"}
    chat = {**row, "id": "r1", "system": "Be kind.", "history": [["Hi", "Hello"], ["Bye?", ""]]}
    assert [(one["from"], one["value"]) for one in through([chat], "sharegpt")[0]["conversations"]] == [
        ("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Bye?"), ("gpt", ""),
        ("human", "Sort.\n\nb a"), ("gpt", "a b"),
    ]  # fmt: skip
    assert (
        through([{**row, "system": "", "history": []}, {**row, "system": None, "history": None}], "alpaca") == [row] * 2
    )
    with pytest.raises(DataError, match="'r1' has 7 turns"):
        through([chat], "alpaca")


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
        (
            {"instruction": "x", "output": "y", "history": [["Hi"]]},
            "'history' is \"[['Hi']]\", but a list of [question, answer] is wanted",
        ),
        (
            {"messages": [{"role": "assistant", "content": "Hi", "weight": 0.5}]},
            "turn 1: 'weight' is 0.5, but 0 (an answer that is not learned) or 1 is wanted",
        ),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(body: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
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


def weights(bodies: list[dict[str, Any]], field: str) -> list[list[int | None]]:
    return [[turn.get("weight") for turn in body[field]] for body in bodies]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_an_answer_that_is_only_to_be_read_stays_so_in_every_shape_and_kind_of_file(
    tmp_path: Path, suffix: str
) -> None:
    said = [dict(turn) for turn in CHAT["conversations"]]
    said[2]["weight"], said[4]["weight"], said[1]["weight"] = 0, 1, 0  # a question's says nothing
    messages = through_file([CHAT, {"id": "c2", "conversations": said}], "openai", tmp_path / f"a{suffix}")
    assert weights(messages, "messages") == [[None] * 5, [None, None, 0, None, None]]
    back = through_file(messages, "sharegpt", tmp_path / f"b{suffix}")
    assert weights(back, "conversations") == [[None] * 5, [None, None, 0, None, None]]
    with pytest.raises(DataError, match=r"'c3' holds an answer that is not to be learned \(weight 0\)"):
        through([{"id": "c3", "conversations": said[1:3]}], "alpaca")


def test_each_answer_is_a_conversation_of_its_own_that_only_reads_the_earlier_ones() -> None:
    said = [*CHAT["conversations"], {"from": "human", "value": "Are you there?"}]
    (example,) = read_examples(records({"id": "c1", "conversations": said}))
    first, second = each_answer(example)
    assert (first.name, second.name) == ("c1_0", "c1_1")
    assert (first.turns, second.turns[-1]) == (example.turns[:3], example.turns[4])
    assert [(turn.text, turn.is_learned) for turn in second.turns] == [
        ("Be kind.", True), ("Hi", True), ("Hello", False), ("Bye", True), ("", True),
    ]  # fmt: skip
    assert [each_answer(one) for one in (first, second)] == [[first], [second]]  # again without harm
    questions, row = read_examples(records({"id": "c2", "conversations": said[-1:]}, ALPACA[0]))
    assert (each_answer(questions), each_answer(row)) == ([], [row])
