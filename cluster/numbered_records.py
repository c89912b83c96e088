"""Records of a run that replace each other: `control/<kind>-000001.json` and on, each put once; the newest counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from checkpoints.store import Store


def record_key(kind: str, number: int) -> str:
    """Where the record lies, in the run's own folder."""
    return f"control/{kind}-{number:06d}.json"


def record_keys(store: Store, kind: str) -> list[str]:
    """Keys of all records of a kind, the newest last."""
    pattern = re.compile(rf"control/{kind}-\d{{6}}\.json")
    return sorted(key for key in store.list(f"control/{kind}-") if pattern.fullmatch(key))


def put_next_record(store: Store, kind: str, body: Mapping[str, Any]) -> int:
    """Put the next record of a kind; returns its number.

    Raises:
        AlreadyExists: somebody else did so at the same moment.
    """
    keys = record_keys(store, kind)
    number = 1 + (number_of(keys[-1]) if keys else 0)
    store.put_once(record_key(kind, number), body)
    return number


def number_of(key: str) -> int:
    """A record's number, from its key."""
    return int(key.removesuffix(".json").rpartition("-")[2])
