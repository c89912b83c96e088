"""Files of records: what is written is read back, in every format, and nothing is replaced or left half."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.files import NEIGHBOURS, load_table
from alpaca_jobs.data.record_files import load_records
from alpaca_jobs.data.rows import iter_rows
from alpaca_jobs.data.stream_writing import write_table
from alpaca_jobs.data.streams import stream_table
from alpaca_jobs.errors import DataError

RECORDS: list[dict[str, Any]] = [
    {"instruction": "Say hällo\u2028now.", "input": "", "output": "Hello.", NEIGHBOURS: {"Say bye.": 0.5}},
    {"instruction": "Count to 3.", "input": "fast", "output": "1, 2, 3", "tags": ["a", "b"], "id": 7},
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_what_is_written_is_read_back_with_every_field(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    write_table(path, RECORDS)
    assert [dict(record.fields) for record in load_table(str(path))] == RECORDS
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [path.name]


def test_alpaca_json_is_what_rows_are_read_from(tmp_path: Path) -> None:
    write_table(tmp_path / "rows.json", RECORDS)
    assert [row.input for row in iter_rows(load_records(str(tmp_path / "rows.json")))] == ["", "fast"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("there.json", "exists already and was left as it is"), ("no/x.json", "there is no folder"), ("x", "no format")],
)
def test_a_target_that_cannot_be_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "there.json").write_text("[]")
    with pytest.raises(DataError, match=said):
        write_table(tmp_path / name, RECORDS)
    assert (tmp_path / "there.json").read_text() == "[]"


def test_parquet_that_is_none_or_empty_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(DataError, match="is not Parquet"):
        load_table(str(tmp_path / "bad.parquet"))
    write_table(tmp_path / "empty.parquet", [])
    with pytest.raises(DataError, match="holds no rows"):
        load_table(str(tmp_path / "empty.parquet"))


def test_a_value_that_a_table_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hold something that it cannot hold"):
        write_table(tmp_path / "mixed.parquet", [{"a": 1}, {"a": "text"}])
    assert not (tmp_path / "mixed.parquet").exists()


def test_records_are_written_as_they_come_and_half_a_file_never_stays(tmp_path: Path) -> None:
    records = [{"instruction": f"Say {n}.", "output": "é"} for n in range(3)]

    def breaks() -> Iterator[dict[str, str]]:
        yield from records
        raise DataError("line 4 is not JSON")

    with pytest.raises(DataError, match="line 4"):
        write_table(tmp_path / "rows.jsonl", breaks())
    with pytest.raises(DataError, match="cannot hold"):
        write_table(tmp_path / "rows.jsonl", [{"output": "\ud800"}])
    assert list(tmp_path.iterdir()) == []
    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        assert write_table(tmp_path / name, iter(records)) == 3
        assert [dict(one.fields) for one in load_table(str(tmp_path / name))] == records


@pytest.mark.parametrize("text", ["{lone}\n{whole}\n", "[{lone},\n {whole}]"])
def test_half_a_character_that_a_browser_cut_off_spoils_no_file(tmp_path: Path, text: str) -> None:
    """JSON.stringify writes it as an escape; no tokenizer takes it, and no file that is UTF-8."""
    source = tmp_path / "chats.json"
    lone = '{"conversations": [{"from": "gpt", "value": "Sure \\ud83d"}], "note": {"\\uDC00": 1}}'
    whole = '{"conversations": [{"from": "gpt", "value": "Sure \\ud83d\\ude00 \\\\ud83d"}]}'
    source.write_text(text.replace("{lone}", lone).replace("{whole}", whole))
    records = [dict(one.fields) for one in load_table(str(source))]
    assert records == [
        {"conversations": [{"from": "gpt", "value": "Sure ?"}], "note": {"?": 1}},
        {"conversations": [{"from": "gpt", "value": "Sure \U0001f600 \\ud83d"}]},
    ]
    assert [dict(one.fields) for one in stream_table(source, str(source))] == records
    assert write_table(tmp_path / "out.jsonl", records) == 2
