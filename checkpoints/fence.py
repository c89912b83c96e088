"""Fence and lease: how an attempt learns in time that it is no longer the one that may write.

The fence is asked before every commit, delete and paid request. The lease keeper asks it all the time, renews the
lease, and reports once when this attempt is over: superseded, ended, or unable to show that it lives.
Time is this machine's monotonic clock; clocks of two machines are never compared.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError, LeaseLost, Superseded

logger = logging.getLogger(__name__)


class Fence:
    """Lets attempt `number` pass while it is the newest claimed one and has no end."""

    def __init__(self, log: AttemptLog, number: int) -> None:
        self.log = log
        self.number = number

    def check(self) -> None:
        """One fresh listing, never cached.

        Raises:
            Superseded: a higher number is claimed, or this attempt's end is recorded.
            StoreUnreachable: the store did not answer, so nobody knows whether the attempt may write: it must not.
        """
        present = self.log.present()
        newest = max((number for number, kinds in present.items() if "claim" in kinds), default=0)
        if newest > self.number or "end" in present.get(self.number, ()):
            raise Superseded(self.number, newest)


class LeaseKeeper:
    """Two daemon threads: one renews the lease and asks the fence, one watches that the first still succeeds.

    The second is there because a store call can hang for longer than the lease lasts.

    Args:
        interval_s: time between renewals.
        lease_s: without a success for this long, the attempt is lost.
        on_lost: called once, from one of the threads, with Superseded or LeaseLost. It should make the process stop.
        poll: called at every interval as well, for what a node wants to look at regularly. Its errors are logged.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        log: AttemptLog,
        number: int,
        *,
        interval_s: float,
        lease_s: float,
        on_lost: Callable[[CheckpointError], None],
        poll: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < interval_s < lease_s:
            raise ValueError(f"interval_s ({interval_s:g}) must be above 0 and below lease_s ({lease_s:g})")
        self._log, self._fence, self._number = log, Fence(log, number), number
        self._interval_s, self._lease_s = interval_s, lease_s
        self._on_lost, self._poll, self._clock = on_lost, poll, clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._last_success = clock()
        self._reason = "the store has not answered yet"
        self._counter = 0
        self._told = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start both threads; the lease time counts from now."""
        self._last_success = self._clock()
        for target in (self._renew_loop, self._watch_loop):
            thread = threading.Thread(target=target, name=f"lease-{self._number}-{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End both threads; a store call that hangs is left behind. `on_lost` is not called any more."""
        self._stopping.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=self._interval_s)

    def renew_once(self) -> None:
        """One round: the fence, then the lease. Failures other than Superseded wait for the watch."""
        try:
            self._fence.check()
            self._counter += 1
            self._log.renew(self._number, self._counter)
        except Superseded as exc:
            self._lose(exc)
        except CheckpointError as exc:
            self._reason = str(exc)
            logger.warning("attempt %d could not renew its lease: %s", self._number, exc)
        else:
            self._last_success = self._clock()

    def watch_once(self) -> None:
        """Report the lease lost if the last success is a lease time ago."""
        if self._clock() - self._last_success >= self._lease_s:
            self._lose(LeaseLost(self._number, self._lease_s, self._reason))

    def _lose(self, error: CheckpointError) -> None:
        with self._lock:
            if self._told or self._stopping.is_set():
                return
            self._told = True
        self._stopping.set()
        self._on_lost(error)

    def _renew_loop(self) -> None:
        while not self._stopping.is_set():
            self.renew_once()
            self._run_poll()
            self._stopping.wait(self._interval_s)

    def _watch_loop(self) -> None:
        while not self._stopping.wait(self._interval_s):
            self.watch_once()

    def _run_poll(self) -> None:
        if self._poll is None or self._stopping.is_set():
            return
        try:
            self._poll()
        except Exception:
            # The lease must go on whatever the caller's hook does: losing it would kill a healthy attempt.
            logger.exception("the poll of attempt %d failed; the lease goes on", self._number)
