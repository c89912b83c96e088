"""Records that replace each other: numbered without a gap, the newest last, whatever lies beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.errors import AlreadyExists
from checkpoints.store import Store
from cluster.numbered_records import number_of, put_next_record, record_keys


def test_the_newest_is_last_and_other_kinds_are_not_counted(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    assert record_keys(store, "limits") == []
    assert [put_next_record(store, "limits", {"n": n}) for n in range(11)] == list(range(1, 12))
    assert put_next_record(store, "machines", {}) == 1
    for beside in ("control/limits-new.json", "control/limits-0000012.json", "control/cancel-0.json"):
        store.put(beside, b"{}")
    keys = record_keys(store, "limits")
    assert (len(keys), keys[-1], number_of(keys[-1])) == (11, "control/limits-000011.json", 11)
    assert store.get_record(keys[-1])["n"] == 10


def test_of_two_at_once_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = Store.open(str(tmp_path)), Store.open(str(tmp_path))
    real = store.list

    def slow(prefix: str = "") -> list[str]:
        found = real(prefix)
        put_next_record(other, "session", {})  # between our look and our put
        return found

    monkeypatch.setattr(store, "list", slow)
    with pytest.raises(AlreadyExists):
        put_next_record(store, "session", {})
