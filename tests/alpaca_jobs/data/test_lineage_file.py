"""Where rows come from goes where they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from alpaca_jobs.data.lineage import lineage_of
from alpaca_jobs.data.lineage_file import STEPS, hand_on, put_lineage, read_lineage
from alpaca_jobs.errors import DataError
from alpaca_jobs.spec import DataSpec

WRITTEN = {"recipe": "alpaca", "teacher": "m at h", "terms": "read them", "licence of the seed tasks": "CC-BY-4.0"}


def test_lineage_is_handed_on_from_file_to_file_with_what_was_done(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("rows.jsonl", "unique.json", "rows.pt.json"))
    put_lineage(first, WRITTEN)
    hand_on(first, second, "similar ones dropped")
    hand_on(second, third, "translated", {"translator": "n at k"})
    assert read_lineage(third) == {**WRITTEN, "translator": "n at k", STEPS: "similar ones dropped; translated"}
    data = DataSpec.model_validate({"from": str(third)})
    assert lineage_of(data, beside=read_lineage(third)) == {**(read_lineage(third) or {}), "rows": "rows.pt.json"}
    named = lineage_of(DataSpec.model_validate({"from": str(third), "licence": "MIT"}), beside=WRITTEN)
    assert named["licence of the rows"] == "MIT"


def test_rows_of_unknown_origin_get_no_lineage_but_who_translated_them(tmp_path: Path) -> None:
    hand_on(tmp_path / "a.json", tmp_path / "b.json", "converted")
    assert read_lineage(tmp_path / "b.json") is None
    hand_on(tmp_path / "a.json", tmp_path / "c.json", "translated", {"translator": "n at k"})
    assert read_lineage(tmp_path / "c.json") == {"rows": "a.json", "translator": "n at k", STEPS: "translated"}


def test_a_lineage_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.json.lineage.json").write_text("[]")
    with pytest.raises(DataError, match="is no lineage of rows"):
        read_lineage(tmp_path / "a.json")
