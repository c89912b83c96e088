"""Store: put, put_once, get (ranges), size, list, delete on file://, memory://, s3://, gs:// and az://.

    store = Store.open("s3://bucket/prefix")
    store.put_once("attempts/000001.claim.json", {"by": "me"})

Everything foreign is left behind here: libraries' errors become CheckpointErrors, transient failures are retried
(bounded, with jitter), listings are never cached. The store*.py files are the only ones that know fsspec.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from checkpoints.errors import (
    AlreadyExists,
    CheckpointError,
    Damaged,
    ObjectMissing,
    PutOnceUnsupported,
    StoreError,
    StorePermission,
)
from checkpoints.store_driver import Driver
from checkpoints.store_errors import redact, translate
from checkpoints.store_open import open_driver

logger = logging.getLogger(__name__)

T = TypeVar("T")
BODY_DIGEST = "body_sha256"
UNREADABLE = "it is no JSON object, or its own digest does not fit it"
PUT_BACK = "Put back the object's earlier version, if the store keeps versions, or take it from a copy of the run."
_PROBE_RACERS = 8
_PATIENT_TRIES, _PATIENT_WAIT_S = 40, 15.0  # about five minutes of waiting in all, if nothing else ends it
_OUR_MISTAKES = (AssertionError, AttributeError, NameError, TypeError)  # no store's answer: passed on as they are


@dataclass(frozen=True)
class Retries:
    """How transient failures are retried: at most `tries` tries, waiting a random part of a doubling time between.

    `within_s`: after the first failure no new try is begun later than this.
    """

    tries: int = 5
    first_wait_s: float = 0.2
    max_wait_s: float = 5.0
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    within_s: float = math.inf
    clock: Callable[[], float] = time.monotonic

    def wait(self, failures: int) -> None:
        """Wait after the `failures`-th failure in a row (from 1)."""
        self.sleep(self.uniform(0.0, min(self.max_wait_s, self.first_wait_s * 2 ** (failures - 1))))

    def are_over(self, failures: int, first_at: float) -> bool:
        """Whether the `failures`-th failure is the last; the first was at `first_at`, by `clock`."""
        return failures >= self.tries or self.clock() - first_at >= self.within_s


class Store:
    """Objects under one root. Safe for use from several threads, and in a forked child."""

    def __init__(self, driver: Driver, *, prefix: str = "", retries: Retries | None = None) -> None:
        self._driver = driver
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._retries = retries or Retries()
        self.uri = f"{driver.uri.rstrip('/')}/{self._prefix}".rstrip("/")

    @classmethod
    def open(
        cls, uri: str, *, storage_options: Mapping[str, Any] | None = None, retries: Retries | None = None
    ) -> Store:
        """The store at `uri`; nothing is read or written yet.

        Args:
            uri: file://, memory://, s3://, gs:// or az://, or a plain path.
            storage_options: passed to s3fs, gcsfs or adlfs (endpoint_url, key, secret, ...); default: the environment.

        Raises:
            StoreError: another scheme, credentials inside the URL, or the scheme's package is not installed.
        """
        return cls(open_driver(uri, dict(storage_options or {})), retries=retries)

    def child(self, prefix: str) -> Store:
        """The same store, rooted at `prefix` below this one."""
        _check_key(prefix.strip("/"))
        return Store(self._driver, prefix=self._prefix + prefix, retries=self._retries)

    def patient(self, within_s: float) -> Store:
        """The same store for work that can wait: a store that does not answer is asked again for so many seconds."""
        retries = replace(self._retries, tries=_PATIENT_TRIES, max_wait_s=_PATIENT_WAIT_S, within_s=within_s)
        return Store(self._driver, prefix=self._prefix, retries=retries)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Put `data`, replacing what was there; readers see all of it or nothing of it.

        Raises:
            StoreFull, StorePermission, StoreUnreachable, StoreError
        """
        full = self._full(key)
        self._retrying("putting", key, lambda: self._driver.write(full, data))

    def get(self, key: str) -> bytes:
        """The whole object.

        Raises:
            ObjectMissing: nothing is there.
        """
        full = self._full(key)
        return self._retrying("reading", key, lambda: self._driver.read(full, 0, None))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on, fewer where the object ends earlier: compare the length.

        Raises:
            ObjectMissing: nothing is there.
        """
        full = self._full(key)
        if length == 0:
            return b""
        return self._retrying("reading", key, lambda: self._driver.read(full, start, length))

    def get_into(self, key: str, start: int, view: memoryview) -> int:
        """Fill `view` (writable bytes) with the object's bytes from `start` on, without a copy on the way.

        Returns:
            How many bytes there were: fewer than the view has where the object ends earlier.

        Raises:
            ObjectMissing: nothing is there. Whatever is raised, `view` may be partly overwritten.
        """
        full = self._full(key)
        if not len(view):
            return 0
        return self._retrying("reading", key, lambda: self._driver.read_into(full, start, view))

    def get_json(self, key: str) -> dict[str, Any] | None:
        """The object as a JSON object; None when it is no such thing: torn, foreign, or not what `put_once` put.

        Raises:
            ObjectMissing: nothing is there.
        """
        return _parse_object(self.get(key))

    def get_record(self, key: str, *, advice: str | None = PUT_BACK) -> dict[str, Any]:
        """The record under `key`, as `put_once` put it: what to read one with that nothing can stand in for.

        Args:
            advice: what the error says to do about a damaged one; None for what is right for a commit.

        Raises:
            ObjectMissing: nothing is there.
            Damaged: `get_json` finds no whole JSON object.
        """
        body = self.get_json(key)
        if body is None:
            raise Damaged(key, UNREADABLE, self.uri, advice=advice)
        return body

    def get_record_if_whole(self, key: str, *, advice: str) -> dict[str, Any] | None:
        """The record under `key`; None for a damaged one, which the log names: for what can be done without.

        Raises:
            ObjectMissing: nothing is there.
        """
        try:
            return self.get_record(key, advice=advice)
        except Damaged as exc:
            logger.warning("%s", exc)
            return None

    def put_once(self, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Put the JSON `body` under `key`, unless something is there already.

        A "nonce" is added, so that a refusal or a lost answer can be settled by reading back: our nonce there means we
        won, whatever the store answered. "body_sha256" is added, so that a flipped bit in a record is found. Always one
        single-part request.

        Returns:
            The body as stored.

        Raises:
            AlreadyExists: somebody else's object is there; carries its body.
            PutOnceUnsupported: the store has no conditional write.
        """
        # Through JSON and back first: tuples and number keys change on the way, and the digest is of what readers see.
        stored: dict[str, Any] = json.loads(json.dumps({**body, "nonce": uuid.uuid4().hex}))
        stored[BODY_DIGEST] = _body_digest(stored)
        data = json.dumps(stored, separators=(",", ":")).encode()
        full = self._full(key)
        first_at: float | None = None
        for failures in range(1, self._retries.tries + 1):
            problem: CheckpointError | None = None
            try:
                if self._driver.create(full, data):
                    return stored
            except Exception as exc:  # noqa: BLE001 - whatever it was, the put may have arrived: look, then decide
                problem = translate(exc, uri=self.uri, key=key, doing="putting once")
                problem.__cause__ = None if problem is exc else exc
            try:
                existing = self._peek(key)
            except StorePermission:
                if problem is None:
                    raise
                raise problem from problem.__cause__  # what was refused first is what there is to mend
            if existing == data:
                return stored
            if existing is not None:
                raise AlreadyExists(key, _parse_object(existing), _already_words(self._place(key)))
            first_at = self._retries.clock() if first_at is None else first_at
            is_last = self._retries.are_over(failures, first_at)
            if problem is not None and (not problem.retryable or is_last):
                raise problem
            if is_last:
                break
            self._retries.wait(failures)
        raise StoreError(
            f"{self._place(key)}: the store refuses to create it and yet has nothing there. Something deletes objects "
            "of this run, or the store does not show what it holds: find out which, then resume."
        )

    def size(self, key: str) -> int | None:
        """Bytes under `key`, None when nothing is there."""
        full = self._full(key)
        return self._retrying("looking at", key, lambda: self._driver.size(full))

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def list(self, prefix: str = "") -> list[str]:
        """All keys that start with `prefix`, sorted; as the store has them now, never from a cache."""
        full = self._prefix + prefix
        keys = self._retrying("listing", prefix, lambda: self._driver.list(full))
        return sorted(key[len(self._prefix) :] for key in keys)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the keys; those that are not there are no error. A key ending in `/` is refused: no folders."""
        full = [self._full(key) for key in keys]
        if full:
            self._retrying("deleting", "", lambda: self._driver.delete(full))

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool] = lambda key: True) -> int:
        """Throw away uploads below `prefix` that never finished (multipart uploads, temporary files); how many.

        Args:
            wanted: is given each upload's key (a temporary file's own name stands for the last segment) and says
                whether nobody can be writing it any more.
        """
        skip = len(self._prefix)
        full = self._prefix + prefix
        return self._retrying(
            "sweeping", prefix, lambda: self._driver.abort_unfinished(full, lambda key: wanted(key[skip:]))
        )

    def probe_put_once(self) -> None:
        """Ask the store itself whether put-once holds, with a few objects that are deleted again.

        Raises:
            PutOnceUnsupported: a second put of the same key was accepted, or several racing writers won.
        """
        first, raced = (f"probe/{uuid.uuid4().hex}.json" for _ in range(2))
        try:
            self._probe(first, raced)
        except BaseException:
            with suppress(CheckpointError):  # of a store that refuses both, the first refusal is the one to tell
                self.delete([first, raced])
            raise
        self.delete([first, raced])

    def _probe(self, first: str, raced: str) -> None:
        self.put_once(first, {"probe": 1})
        if self._wins(first, 2):  # a store that accepts every put need not be raced: some fail in it, or keep its keys
            raise self._no_put_once("a second put of the same key was accepted")
        with ThreadPoolExecutor(_PROBE_RACERS) as pool:
            winners = sum(pool.map(lambda number: self._wins(raced, number), range(_PROBE_RACERS)))
        if winners != 1:
            raise self._no_put_once(f"{winners} of {_PROBE_RACERS} racing writers won")

    def _wins(self, key: str, number: int) -> bool:
        try:
            self.put_once(key, {"probe": number})
        except AlreadyExists:
            return False
        return True

    def _no_put_once(self, found: str) -> PutOnceUnsupported:
        return PutOnceUnsupported(
            f"{self.uri}: put-once does not hold here: {found}. Two attempts could overwrite each other's state, "
            "so nothing is started. Use a store with conditional writes (AWS S3, Google Cloud Storage, Azure Blob, "
            "recent MinIO or Ceph, or a local folder)."
        )

    def _peek(self, key: str) -> bytes | None:
        try:
            return self.get(key)
        except ObjectMissing:
            return None

    def _retrying(self, doing: str, key: str, act: Callable[[], T]) -> T:
        first_at: float | None = None
        for failures in range(1, self._retries.tries + 1):
            try:
                return act()
            except _OUR_MISTAKES:
                raise
            except Exception as exc:  # noqa: BLE001 - the seam: every foreign error becomes ours here
                problem = translate(exc, uri=self.uri, key=key, doing=doing)
                first_at = self._retries.clock() if first_at is None else first_at
                if not problem.retryable or self._retries.are_over(failures, first_at):
                    raise problem from (None if problem is exc else exc)
                logger.info(
                    "%s %s failed (%s); try %d follows", doing, self._place(key), redact(str(exc)), failures + 1
                )
                self._retries.wait(failures)
        raise AssertionError("unreachable: the last try returns or raises")

    def _full(self, key: str) -> str:
        return self._prefix + _check_key(key)

    def _place(self, key: str) -> str:
        return f"{self.uri}/{key}"

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


def _parse_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`; None when there is none, or it carries a digest that does not fit it."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    if not isinstance(value, dict) or (BODY_DIGEST in value and value[BODY_DIGEST] != _body_digest(value)):
        return None
    return value


def _body_digest(body: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in body.items() if name != BODY_DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _already_words(place: str) -> str:
    return (
        f"{place} exists already and was put by somebody else. It is put once and never changed: take another attempt "
        "number (or position), or find out who else is running."
    )


def _check_key(key: str) -> str:
    parts = key.split("/")
    if not key or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{key!r} is no key: plain segments between single slashes, no '.', '..' or empty ones")
    return key
