"""Row: one instruction with its input and output, and how rows are written to and read from files.

`render_rows` and `parse_rows` are the format of a generate commit's `rows.jsonl`; `iter_rows` takes records in Alpaca's
shape, for jobs whose rows exist already (`data.from`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alpaca_jobs.data.record_files import Record, parse_records
from alpaca_jobs.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """One example to train on. The first three fields are Alpaca's own.

    Attributes:
        instruction: what to do; unique among the rows of a run.
        input: what to do it with; empty for about 60 % of Alpaca's rows.
        output: the answer.
        request: number of the teacher request it came from, from 1; 0 for rows that were not generated here.
        index: place of the task in that request's answer, or of the row in its file, from 0.
        most_similar: (instruction, ROUGE-L F) of the nearest seeds and earlier rows, best first; None if not asked for.
        average_similarity: mean ROUGE-L F with all seeds and earlier rows; None if not asked for.
    """

    instruction: str
    input: str
    output: str
    request: int = 0
    index: int = 0
    most_similar: tuple[tuple[str, float], ...] | None = None
    average_similarity: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON fields; neighbours under Alpaca's own names, absent when they were not asked for."""
        body: dict[str, Any] = {
            "instruction": self.instruction,
            "input": self.input,
            "output": self.output,
            "request": self.request,
            "index": self.index,
        }
        if self.most_similar is not None:
            body["most_similar_instructions"] = dict(self.most_similar)
        if self.average_similarity is not None:
            body["avg_similarity_score"] = self.average_similarity
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Row:
        """Return the row that `to_json` wrote; missing numbers are 0, unknown fields are left out."""
        neighbours = body.get("most_similar_instructions")
        return cls(
            instruction=body["instruction"],
            input=body.get("input", ""),
            output=body["output"],
            request=int(body.get("request", 0)),
            index=int(body.get("index", 0)),
            most_similar=None if neighbours is None else tuple((text, score) for text, score in neighbours.items()),
            average_similarity=body.get("avg_similarity_score"),
        )


def render_rows(rows: Iterable[Row]) -> bytes:
    """Return rows as JSON lines, UTF-8, in their order; the same rows always give the same bytes."""
    return "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows).encode("utf-8")


def parse_rows(data: bytes | memoryview, source: str) -> tuple[Row, ...]:
    """Return the rows of a `rows.jsonl` object; nothing in it gives no rows.

    Args:
        data: what `render_rows` made.
        source: where it comes from, for error texts.

    Raises:
        DataError: a line is not JSON or lacks a field.
    """
    text = bytes(data).decode("utf-8")
    return tuple(_row(record) for record in parse_records(text, source)) if text.strip() else ()


def iter_rows(records: Iterable[Record]) -> Iterator[Row]:
    """Rows of records in Alpaca's shape, one by one. Raises DataError: a record without its fields; says which."""
    for place, record in enumerate(records):
        row = _row(record)
        yield row if "index" in record.fields else Row(row.instruction, row.input, row.output, index=place)


def _row(record: Record) -> Row:
    record.text("instruction")
    record.text("output", may_be_empty=True)  # Alpaca's published 52,002 rows have 28 with an empty output
    if "input" in record.fields:
        record.text("input", may_be_empty=True)
    for key in ("history", "system"):
        if record.fields.get(key):
            raise DataError(
                f"{record.where} has {key!r}, and Alpaca's prompt has no place for it: its answer would be learned "
                "without what was said before. Make chats of the file (`alpaca-jobs data convert IN OUT --to "
                f"sharegpt`) and train with recipe vicuna, or take {key!r} out."
            )
    for key in ("request", "index"):
        value = record.fields.get(key, 0)
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{record.where}: {key} is {value!r}, but a whole number is wanted. Correct or remove it.")
    return Row.from_json(record.fields)
