"""Asking a run to stop, from any laptop that reaches its store.

control/cancel-<nonce>.json      somebody wants the run to stop; put once, never taken back
control/answered-<nonce>.json    a `resume` lists the cancels that came before it and no longer count
"""

from __future__ import annotations

import secrets

from checkpoints.store import Store
from cluster.events import utc_now

_FOLDER = "control/"


def ask_cancel(store: Store) -> None:
    """Ask the run to stop; its supervisor and its node look once a second."""
    nonce = secrets.token_hex(8)
    store.put_once(f"{_FOLDER}cancel-{nonce}.json", {"t": utc_now()})


def answer_cancels(store: Store) -> None:
    """Let the run go on in spite of every cancel asked until now."""
    watch = CancelWatch(store)
    if open_cancels := watch.open_cancels():
        nonce = secrets.token_hex(8)
        store.put_once(f"{_FOLDER}answered-{nonce}.json", {"t": utc_now(), "cancels": sorted(open_cancels)})


class CancelWatch:
    """Looks whether a cancel is open; one listing a look, and one read per object that was not there before."""

    def __init__(self, store: Store) -> None:
        """Take the run's store."""
        self._store = store
        self._answered: dict[str, frozenset[str]] = {}

    def open_cancels(self) -> frozenset[str]:
        """Keys of cancels that no resume has answered; empty: nobody wants the run to stop."""
        keys = self._store.list(_FOLDER)
        for key in keys:
            if key.startswith(f"{_FOLDER}answered-") and key not in self._answered:
                self._answered[key] = self._read_answered(key)
        answered = frozenset[str]().union(*self._answered.values())
        return frozenset(key for key in keys if key.startswith(f"{_FOLDER}cancel-")) - answered

    def _read_answered(self, key: str) -> frozenset[str]:
        """Which cancels an answer lists; none where it is damaged, for a run that somebody wanted to stop stops."""
        body = self._store.get_record_if_whole(key, advice="The cancels it answered count again: resume the run.")
        return frozenset(body["cancels"] if body else ())
