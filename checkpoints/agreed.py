"""What goes wrong on one rank is raised on every rank, at the same call.

    values = on_every_rank(exchange, act)

    failure = AgreedFailure(exchange)
    failure.set(error)              # the background thread of every rank, when the same work failed on all of them
    failure.raise_if_due()          # the main thread, at each poll: no meeting, no waiting while all is well
    failure.raise_if_any()          # the main thread, where it has waited for the background

Asking an AgreedFailure is cheap and meets nobody, so one rank could see a failure at a poll at which another, a moment
earlier, did not; the first would then stand in one meeting and the second in the next. So the background threads of all
ranks tell each other how often their rank has asked, and the failure is due at the first question that none of them has
asked yet.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from checkpoints.barrier import Exchange, RanksParted
from checkpoints.errors import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")


class AgreedFailure:
    """At most one failure at a time. The main threads of all ranks ask equally often, in the same order."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._asked = 0
        self._due = 0
        self._error: Exception | None = None
        self._settled = threading.Event()
        self._settled.set()

    def set(self, error: Exception) -> None:
        """Note a failure that every rank has noted or is about to; meets the others, in the background."""
        with self._lock:
            self._settled.clear()
            self._error, asked = error, self._asked
        due = 0  # at once, where the ranks have parted anyway
        if not isinstance(error, RanksParted):
            try:
                due = max(self._exchange.gather(asked)) + 1
            except RanksParted as exc:
                logger.warning("the ranks could not agree on when to raise a failure: %s", exc)
        self._due = due
        self._settled.set()

    def raise_if_due(self) -> None:
        """One question. Waits only for ranks that are about to agree on a failure."""
        with self._lock:
            self._asked += 1
            asked = self._asked
            if self._error is None:
                return
        self._settled.wait()
        if asked >= self._due:
            self.raise_if_any()

    def raise_if_any(self) -> None:
        """Where every rank has waited for its background to end: a failure is known to all of them or to none."""
        if (error := self.take()) is not None:
            raise error

    def take(self) -> Exception | None:
        """The failure, which is then forgotten."""
        self._settled.wait()
        with self._lock:
            error, self._error = self._error, None
        return error


def on_every_rank(exchange: Exchange, act: Callable[[], T]) -> list[T]:
    """Run `act`, meet, and return all ranks' values; what was raised on any rank is raised on every rank.

    Raises:
        CheckpointError: the lowest rank's; another library's exception is told in its words.
    """
    value: Any = None
    problem: CheckpointError | None = None
    try:
        value = act()
    except CheckpointError as exc:
        problem = exc
    except Exception as exc:
        logger.exception("rank %d failed", exchange.rank)
        problem = CheckpointError(f"rank {exchange.rank} failed: {type(exc).__name__}: {exc}")
    gathered = exchange.gather((problem, value))
    for raised, _ in gathered:
        if raised is not None:
            raise raised
    return [found for _, found in gathered]


def on_rank_0(exchange: Exchange, act: Callable[[], T]) -> T:
    """Run `act` on rank 0 alone; every rank returns its value or raises its error."""
    return on_every_rank(exchange, cast(Callable[[], T], act if exchange.rank == 0 else lambda: None))[0]
