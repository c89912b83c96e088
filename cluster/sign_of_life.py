"""When an attempt on a paid machine was last at work: where nobody saw its end, its machine is counted by that.

control/alive-000002.json      {"t": ISO time}, rewritten once a minute while the attempt looks after its lease
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from checkpoints.errors import ObjectMissing
from checkpoints.store import Store
from cluster.events import seconds_of, utc_now

_EVERY_S: Final = 60.0


class SignOfLife:
    """Gives a sign at once and then every minute, however often it is asked to."""

    def __init__(self, store: Store, attempt: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the run's store; `clock` is in monotonic seconds."""
        self._store, self._key, self._clock = store, _key(attempt), clock
        self._given_at: float | None = None

    def give(self) -> None:
        """To be called as long as the attempt is at work. Raises StoreError, and tries again at the next call."""
        now = self._clock()
        if self._given_at is None or now - self._given_at >= _EVERY_S:
            self._store.put(self._key, b'{"t":"%s"}' % utc_now().encode())
            self._given_at = now


def last_sign_s(store: Store, attempt: int) -> float | None:
    """When an attempt gave its last sign, in seconds since 1970, on its own clock; None if it gave none."""
    try:
        body = store.get_json(_key(attempt))
    except ObjectMissing:
        return None
    try:
        return seconds_of(str(body["t"])) if body else None
    except (KeyError, ValueError):
        return None


def _key(attempt: int) -> str:
    return f"control/alive-{attempt:06d}.json"
