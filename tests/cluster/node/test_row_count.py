"""Rows of a file, counted without a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.node.row_count import count_rows

ROW = {"instruction": "x" * 40, "input": "", "output": "y" * 360}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_are_counted_and_their_tokens_are_a_quarter_of_their_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps([ROW] * 3) if name == "rows.json" else f"{json.dumps(ROW)}\n\n" * 3, encoding="utf-8")
    found = count_rows(str(path), recipe="vicuna")
    assert found is not None
    assert (found.num_rows, found.tokens_per_row) == (3, 100.0)
    assert found.source == f"100 a row: bytes of {name} / 4 (prior)"
    with_template = count_rows(str(path), recipe="alpaca")
    assert with_template is not None
    assert 120 < with_template.tokens_per_row < 150


def test_conversations_are_counted_through_their_turns(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps([{"conversations": [{"from": "gpt", "value": "x" * 397}]}]), encoding="utf-8")
    found = count_rows(str(path), recipe="vicuna")
    assert found is not None
    assert found.tokens_per_row == 100.0


def test_other_scripts_have_more_tokens_a_letter(tmp_path: Path) -> None:
    """The sentence of Chinese-LLaMA's paper (arXiv:2304.08177, table 1): 16 tokens of its tokenizer, 35 of LLaMA's."""
    path = tmp_path / "zh.jsonl"
    path.write_text(json.dumps({"text": "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"}), encoding="utf-8")
    found = count_rows(str(path), recipe="pretrain")
    assert found is not None
    assert 16 < found.tokens_per_row < 35


@pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2", "\ufeff"])
def test_file_that_holds_no_rows_is_not_counted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8")
    assert count_rows(str(path), recipe="alpaca") is None


def test_what_is_not_here_is_not_counted(tmp_path: Path) -> None:
    assert count_rows("s3://bucket/rows.json", recipe="alpaca") is None
    assert count_rows(str(tmp_path / "none.json"), recipe="alpaca") is None
    assert count_rows(str(tmp_path), recipe="alpaca") is None
