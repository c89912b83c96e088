"""Which commits count. Pure: records and commits in, an ordered list out.

A commit counts if its attempt is the newest with a base, or in that one's ancestry at or before the position from
which the next one started. So what a zombie still commits after its successor chose a base never counts: it lies beyond
that base. Newest means highest (stage, position, attempt).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from checkpoints.errors import Damaged
from checkpoints.keys import CommitRef, Layout, base_key


@dataclass(frozen=True)
class AttemptRecord:
    """What the store knows about one attempt.

    `has_base` is False until the attempt has loaded and verified what it starts from; then `base` names that commit,
    or is None when a listing that succeeded showed that there was none.
    """

    number: int
    claim: Mapping[str, Any] | None
    has_base: bool
    base: CommitRef | None
    end: Mapping[str, Any] | None


def ancestry(records: Iterable[AttemptRecord], layout: Layout) -> dict[int, tuple[int, int] | None]:
    """The attempts whose commits may count, and how far: attempt -> last (stage index, position), None for no bound.

    Raises:
        Damaged: a base names an attempt that is not older than the one that starts from it.
    """
    with_base = {record.number: record for record in records if record.has_base}
    limits: dict[int, tuple[int, int] | None] = {}
    if not with_base:
        return limits
    newest = max(with_base)
    limits[newest] = None
    number: int = newest
    while (record := with_base.get(number)) is not None and record.base is not None:
        base = record.base
        if base.attempt >= number:
            raise Damaged(base_key(number), f"it starts from attempt {base.attempt}, which is not older than {number}")
        limits[base.attempt] = layout.reach(base)
        number = base.attempt
    return limits


def counting_commits(records: Iterable[AttemptRecord], commits: Iterable[CommitRef], layout: Layout) -> list[CommitRef]:
    """The commits that count, newest first.

    Args:
        records: every attempt known; order does not matter.
        commits: every commit with a manifest; order does not matter.

    Raises:
        Damaged: a base names an attempt that is not older than the one that starts from it.
    """
    limits = ancestry(records, layout)
    counting = []
    for ref in set(commits):
        if ref.attempt not in limits:
            continue
        limit = limits[ref.attempt]
        if limit is None or layout.reach(ref) <= limit:
            counting.append(ref)
    return sorted(counting, key=layout.sort_key, reverse=True)
