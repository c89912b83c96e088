"""Rows to bytes and back, and reading rows that exist already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_jobs.data.record_files import load_records
from alpaca_jobs.data.rows import Row, iter_rows, parse_rows, render_rows
from alpaca_jobs.errors import DataError

TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@given(st.lists(st.builds(Row, TEXT.filter(str.strip), TEXT, TEXT, st.integers(0, 9**9), st.integers(0, 99))))
@settings(deadline=None)
def test_rows_come_back_as_they_were_written(rows: list[Row]) -> None:
    assert parse_rows(render_rows(rows), "rows.jsonl") == tuple(rows)


def test_neighbours_travel_under_alpacas_names() -> None:
    row = Row("a b c", "", "d", 3, 1, most_similar=(("x y", 0.5), ("z", 0.25)), average_similarity=0.125)
    body = json.loads(render_rows([row]))
    assert body["most_similar_instructions"] == {"x y": 0.5, "z": 0.25}
    assert body["avg_similarity_score"] == 0.125
    assert parse_rows(render_rows([row]), "x") == (row,)


def test_alpaca_json_gives_numbered_rows(tmp_path: Path) -> None:
    path = tmp_path / "alpaca_data.json"
    path.write_text(
        json.dumps([{"instruction": "A?", "input": "", "output": "B"}, {"instruction": "C?", "output": ""}])
    )
    assert tuple(iter_rows(load_records(str(path)))) == (Row("A?", "", "B", 0, 0), Row("C?", "", "", 0, 1))


def test_json_lines_give_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(render_rows([Row("A b", "c", "d", 5, 6)]))
    assert tuple(iter_rows(load_records(str(path)))) == (Row("A b", "c", "d", 5, 6),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"instruction": "a", "output": 3}', "line 1: 'output' is 3, but a string is wanted"),
        ('{"instruction": "a"}', "line 1 has no 'output'; its fields are: instruction"),
        ('{"instruction": " ", "output": "b"}', "line 1: 'instruction' is empty"),
        ('{"instruction": "a", "output": "b", "index": "c"}', "line 1: index is 'c', but a whole number"),
        (
            '{"instruction": "a", "output": "b", "history": [["c", "d"]]}',
            "line 1 has 'history', and Alpaca's prompt has no place for it",
        ),
        ('{"instruction": "a", "output": "b", "system": "c"}', "line 1 has 'system', and Alpaca's prompt has no place"),
        ('{"instruction": "a", "output": "b"}\nnot json', "line 2 is not JSON"),
        ('[{"instruction": "a", "output": "b"}, 7]', "item 2 is 7, but a JSON object"),
        ("[]", "is an empty list"),
        (" \n", "is empty"),
        ('[{"instruction":\n "a",,}]', "line 2 is not JSON"),
    ],
)
def test_bad_rows_are_refused_with_their_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        tuple(iter_rows(load_records(str(path))))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
