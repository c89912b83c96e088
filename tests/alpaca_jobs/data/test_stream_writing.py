"""Records written as they come are the file that is written at once, whatever turns up late."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_jobs.data import stream_writing
from alpaca_jobs.data.files import load_table
from alpaca_jobs.data.stream_writing import write_table
from alpaca_jobs.errors import DataError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NUMBER = st.one_of(st.integers(-(2**31), 2**31), st.floats(allow_nan=False, allow_infinity=False, width=32))
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"instruction": TEXT},
        optional={
            "score": NUMBER,
            "note": st.none() | TEXT,
            "turns": st.lists(st.fixed_dictionaries({"from": TEXT}, optional={"value": TEXT}), max_size=2),
            "most_similar_instructions": st.dictionaries(TEXT, st.floats(0, 1), max_size=2),
        },
    ),
    max_size=9,
)


@given(RECORDS)
@settings(max_examples=60, deadline=None)
def test_a_list_is_written_to_the_byte_as_json_has_it(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("list") / "rows.json"
    assert write_table(path, iter(records)) == len(records)
    assert path.read_bytes() == (json.dumps(records, indent=2, ensure_ascii=False) + "\n").encode()


@given(RECORDS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_parquet_in_groups_is_the_table_that_is_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, Any]], group: int
) -> None:
    from pyarrow import parquet

    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_writing, "_GROUP_ROWS", group)
        assert write_table(folder / "stream.parquet", iter(records)) == len(records)
    write_table(folder / "once.parquet", records)
    stream, once = (parquet.read_table(folder / name) for name in ("stream.parquet", "once.parquet"))
    assert stream.schema.remove_metadata() == once.schema.remove_metadata()
    assert stream.to_pylist() == once.to_pylist()
    assert {path.name for path in folder.iterdir()} == {"stream.parquet", "once.parquet"}


def test_a_late_column_of_another_kind_is_refused_and_half_a_file_never_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_writing, "_GROUP_ROWS", 2)
    records = [{"a": 1}, {"a": 2}, {"a": None, "b": "late"}, {"a": 3}, {"a": "text"}]
    with pytest.raises(DataError, match="hold something that it cannot hold"):
        write_table(tmp_path / "rows.parquet", iter(records))
    assert list(tmp_path.iterdir()) == []
    assert write_table(tmp_path / "rows.parquet", iter(records[:4])) == 4
    read = [dict(one.fields) for one in load_table(str(tmp_path / "rows.parquet"))]
    assert read == [{"a": 1}, {"a": 2}, {"b": "late"}, {"a": 3}]


def test_what_fails_while_records_are_read_is_not_the_files_fault(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, str]]:
        yield {"instruction": "Say hello."}
        raise ValueError("no such thing")

    for name in ("rows.jsonl", "rows.json", "rows.parquet"):
        with pytest.raises(ValueError, match="no such thing"):
            write_table(tmp_path / name, broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_memory_does_not_grow_with_the_number_of_records(tmp_path: Path, name: str) -> None:
    def peak_bytes(count: int) -> int:
        def records() -> Iterator[dict[str, str]]:
            for n in range(count):
                if n % 50 == 0:
                    gc.collect(1)  # json's own encoder leaves circles behind, which nobody holds
                yield {"instruction": f"Say number {n}.", "output": "x" * 500 + str(n)}

        tracemalloc.start()
        try:
            assert write_table(tmp_path / f"{count}-{name}", records()) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_writing, "_GROUP_ROWS", 200)
        peak_bytes(400)  # what is loaded and made once
        assert peak_bytes(4000) < 1.5 * peak_bytes(800)
    assert load_table(str(tmp_path / f"800-{name}"))[799].fields["instruction"] == "Say number 799."
