"""How many rows a file has and how long they are, without a tokenizer: good enough for an estimate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_jobs.prompts import render_prompt

BYTES_PER_TOKEN = 4.0
"""Of texts in UTF-8; a prior of ours: English has about 4 characters a token, and other scripts, whose letters take two
or three bytes, fewer. Of 28 characters of Chinese this makes 21 tokens, LLaMA's tokenizer 35, and that of Chinese-LLaMA
16 (arXiv:2304.08177, table 1)."""
_MAX_BYTES = 100e6  # a larger file would cost more time than an estimate may take


@dataclass(frozen=True)
class RowCount:
    """Rows of a file, and the mean of their tokens."""

    num_rows: int
    tokens_per_row: float
    source: str


def count_rows(source: str, *, recipe: str) -> RowCount | None:
    """Count the rows of a local file; None for a URI, a file that is too large, or one that cannot be read as rows.

    Whether the rows are right is not judged here: `launch` does that.
    """
    path = Path(source)
    if "://" in source or not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip()[:1] == "[" else [json.loads(o) for o in text.splitlines() if o.strip()]
    except ValueError:
        return None
    if not isinstance(rows, list) or not rows:
        return None
    template = len(render_prompt("")) if recipe == "alpaca" else 0
    tokens = (sum(_bytes(row) for row in rows) / len(rows) + template) / BYTES_PER_TOKEN
    return RowCount(len(rows), tokens, f"{tokens:.0f} a row: bytes of {path.name} / {BYTES_PER_TOKEN:g} (prior)")


def num_tokens(text: str) -> float:
    """Of one text, about."""
    return _bytes(text) / BYTES_PER_TOKEN


def _bytes(value: Any) -> int:
    """Of all texts in a row, keys aside."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list) else 0
