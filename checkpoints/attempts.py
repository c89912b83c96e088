"""AttemptLog: the records of attempts in the store; claim, base and end are put once, the lease is renewed.

attempts/000002.claim.json   who and where, put once when the attempt starts
attempts/000002.base.json    {"base": {stage, position, attempt} | null}, put once after that state is loaded
attempts/000002.base_copy.json   the same, put right before it: only base.json decides, and this one says what it said
                             should its bytes rot. Runs of older versions have none, and need none while they are whole.
attempts/000002.lease.json   {"counter": n}, rewritten while it lives
attempts/000002.end.json     put once by itself, its successor or the launcher
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from checkpoints.errors import AlreadyExists, Damaged, ObjectMissing, RunActive, Superseded
from checkpoints.keys import (
    ATTEMPTS,
    CommitRef,
    Layout,
    attempt_key,
    base_copy_key,
    base_key,
    claim_key,
    end_key,
    lease_key,
    parse_attempt_key,
)
from checkpoints.lineage import AttemptRecord
from checkpoints.store import PUT_BACK, UNREADABLE, Store

logger = logging.getLogger(__name__)

_BASE_ADVICE = (
    f"Without it nobody knows which commits count, so nothing is started from it and nothing deleted. {PUT_BACK}"
)
_GOING_ON = "Going on without what it said."
_COPY_STANDS = "Its copy is whole and is read in its place."


class AttemptLog:
    """Reads and writes attempt records. What is put once is remembered once it was seen; absence never is."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store = store
        self._layout = layout
        self._seen: dict[str, dict[str, Any]] = {}
        self._bases: dict[int, CommitRef | None] = {}

    def claim(self, number: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take attempt `number`; returns the claim as stored.

        Raises:
            AlreadyExists: somebody else has it.
        """
        return self._store.put_once(claim_key(number), body)

    def put_base(self, number: int, base: CommitRef | None) -> None:
        """Record what attempt `number` starts from, once that is verified and loaded; None only if there is nothing.

        Raises:
            AlreadyExists: a base was recorded before, or begun to be with another commit.
            Superseded: the base is of a newer attempt, which owns the run by now.
            ValueError: the base is of this very attempt, or of an unknown stage.
        """
        if base is not None:
            if base.attempt > number:
                raise Superseded(number, base.attempt)
            if base.attempt == number:
                raise ValueError(f"attempt {number} cannot start from {base}: that attempt is not older")
            self._layout.stage_index(base.stage)
        body = {"base": None if base is None else base.to_json()}
        try:
            self._store.put_once(base_copy_key(number), body)
        except AlreadyExists as exc:
            # It may have died between the two puts. The copy alone decides nothing, but it must not say anything else.
            if exc.existing is None or exc.existing.get("base", ...) != body["base"]:
                raise
        self._store.put_once(base_key(number), body)

    def put_end(self, number: int, body: Mapping[str, Any]) -> bool:
        """Record the end of attempt `number`; False if an end was recorded before (that one stands)."""
        try:
            self._store.put_once(end_key(number), body)
        except AlreadyExists:
            return False
        return True

    def renew(self, number: int, counter: int) -> None:
        """Write the lease. Only that it changes means something; it is no clock."""
        self._store.put(lease_key(number), b'{"counter":%d}' % counter)

    def read_lease(self, number: int) -> int | None:
        """The lease's counter; None when there is none yet, or it is unreadable."""
        try:
            body = self._store.get_json(lease_key(number))
        except ObjectMissing:
            return None
        counter = body.get("counter") if body else None
        return counter if isinstance(counter, int) else None

    def present(self) -> dict[int, frozenset[str]]:
        """Which records exist, by one fresh listing: number -> kinds (those of `ATTEMPT_KINDS`)."""
        found: dict[int, set[str]] = {}
        for key in self._store.list(ATTEMPTS):
            parsed = parse_attempt_key(key)
            if parsed:
                found.setdefault(parsed[0], set()).add(parsed[1])
        return {number: frozenset(kinds) for number, kinds in found.items()}

    def newest(self) -> int:
        """The highest claimed number, 0 when nothing was claimed."""
        return max((number for number, kinds in self.present().items() if "claim" in kinds), default=0)

    def records(self) -> list[AttemptRecord]:
        """All attempts by number.

        A claim or an end that is damaged is named in the log and taken for an empty one: that it is there is what
        decides. A base that is damaged is named in the log and read from its copy.

        Raises:
            Damaged: a base and its copy are damaged, so nobody knows which commits count.
        """
        return [self._record(number, kinds) for number, kinds in sorted(self.present().items())]

    def damaged(self) -> list[Damaged]:
        """Every record that is not as it was put, copies too, each read anew; what a lease says needs no proof."""
        return [
            problem
            for number, kinds in sorted(self.present().items())
            for kind in sorted(kinds - {"lease"})
            if (problem := self._problem(number, kind)) is not None
        ]

    def _problem(self, number: int, kind: str) -> Damaged | None:
        try:
            if kind in ("base", "base_copy"):
                self._read_base(number, kind)
            elif self._store.get_json(attempt_key(number, kind)) is None:
                return Damaged(attempt_key(number, kind), UNREADABLE, self._store.uri, advice=_GOING_ON)
        except ObjectMissing:
            return None  # the run is being removed
        except Damaged as problem:
            other = "base_copy" if kind == "base" else "base"
            try:
                self._read_base(number, other)
            except (Damaged, ObjectMissing):
                return problem
            advice = _COPY_STANDS if kind == "base" else "The record it is a copy of is whole, so nothing is lost."
            return Damaged(problem.key, problem.problem, self._store.uri, advice=advice)
        return None

    def _record(self, number: int, kinds: frozenset[str]) -> AttemptRecord:
        claim, end = (self._body(number, kind) if kind in kinds else None for kind in ("claim", "end"))
        base = self._base(number) if "base" in kinds else None
        return AttemptRecord(number, claim, "base" in kinds, base, end)

    def _base(self, number: int) -> CommitRef | None:
        """What attempt `number` began with: by its base, or by the copy of it where that is damaged."""
        if number not in self._bases:
            try:
                self._bases[number] = self._read_base(number, "base")
            except Damaged as problem:
                try:
                    self._bases[number] = self._read_base(number, "base_copy")
                except (Damaged, ObjectMissing):
                    raise problem from None
                logger.warning("%s/%s is damaged: %s. %s", self._store.uri, problem.key, problem.problem, _COPY_STANDS)
        return self._bases[number]

    def _read_base(self, number: int, kind: str) -> CommitRef | None:
        key = attempt_key(number, kind)
        body = self._store.get_record(key, advice=_BASE_ADVICE)
        if "base" in body and body["base"] is None:
            return None
        try:
            base = CommitRef.from_json(body.get("base"))
            self._layout.stage_index(base.stage)
        except (ValueError, KeyError) as exc:
            raise Damaged(key, f"it names no commit ({exc})", self._store.uri, advice=_BASE_ADVICE) from exc
        return base

    def _body(self, number: int, kind: str) -> dict[str, Any]:
        key = attempt_key(number, kind)
        if key not in self._seen:
            self._seen[key] = self._store.get_record_if_whole(key, advice=_GOING_ON) or {}
        return self._seen[key]


def claim_next(
    log: AttemptLog,
    body: Mapping[str, Any],
    *,
    lease_s: float,
    poll_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Claim the number after the newest, where nobody hands numbers out; returns it.

    If the newest attempt has no end, its lease is watched first, for the lease time on this machine's clock: only an
    attempt that stands still is taken for dead (and its end recorded as `lost`).

    Raises:
        RunActive: the newest attempt renewed its lease, or somebody else claimed the number first.
    """
    newest = log.newest()
    ended = newest == 0 or "end" in log.present().get(newest, ())
    if not ended:
        seen, until = log.read_lease(newest), clock() + lease_s
        while clock() < until:
            sleep(poll_s)
            if log.read_lease(newest) != seen:
                raise RunActive(newest)
    try:
        log.claim(newest + 1, body)
    except AlreadyExists as exc:
        raise RunActive(newest + 1) from exc
    if not ended:
        log.put_end(newest, {"stop_reason": "lost", "by_attempt": newest + 1})
    return newest + 1
