"""Watching one attempt until it is over, whoever ended it: itself, the machine, the clock, or the user."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from cluster.backend import Backend, Handle
from cluster.exits import Notice, describe_exit, reason_of_exit
from cluster.recovery import StopReason
from cluster.runs.session import Timing

logger = logging.getLogger(__name__)

T = TypeVar("T")
_STORE_PAUSE_S = 2.0
_AFTER_WINDOW_S = 2.0  # a node that uses its whole window still gets to write its end


@dataclass(frozen=True)
class Ask:
    """Somebody wants the attempt to stop; with `at_once` it gets no window any more."""

    reason: StopReason
    detail: str
    at_once: bool = False


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, as far as can be known.

    Attributes:
        reached: (stage, position) of the last work it did, committed or not; None if that is unknown.
        is_recorded: whether an end record stands in the store already.
    """

    reason: StopReason
    detail: str
    retryable: bool = True
    exit_code: int | None = None
    reached: tuple[str, int] | None = None
    is_recorded: bool = False


class LeaseWatch:
    """Judges by its own clock whether a lease stands still.

    Time counts only while somebody looks: a laptop that slept, or a supervisor that was stopped, has not seen the
    lease stand still, however late it is when it looks again.
    """

    def __init__(self, timing: Timing, now: float) -> None:
        self._timing = timing
        self._counter: int | None = None
        self._looked_at = now
        self._still_s = 0.0

    def is_stalled(self, counter: int | None, now: float) -> bool:
        """Take the lease's counter as read at `now` (monotonic seconds); None before the node's first renewal."""
        if counter != self._counter:
            self._counter, self._still_s = counter, 0.0
        else:
            self._still_s += min(now - self._looked_at, 3 * self._timing.store_poll_s)
        self._looked_at = now
        return self._still_s >= (self._timing.claim_s if counter is None else self._timing.lease_s)


class AttemptWatch:
    """Watches one node; `run` returns when nothing of it is left.

    Args:
        ask: looked at all the time: says when somebody wants the attempt to stop.
    """

    def __init__(
        self, handle: Handle, backend: Backend, log: AttemptLog, timing: Timing, *, ask: Callable[[], Ask | None]
    ) -> None:
        self._handle, self._backend, self._log, self._timing, self._ask = handle, backend, log, timing, ask
        self._lease = LeaseWatch(timing, time.monotonic())
        self._asked: Ask | None = None
        self._kill_at = 0.0
        self._look_at_store_at = 0.0

    def run(self) -> Ending:
        """Watch to the end. Failures of the store are outlived: the node is the one who must not do without it."""
        while True:
            status = self._backend.status(self._handle)
            if not status.is_running:
                return self._after_exit(status.exit_code)
            verdict = self._check_asked() or self._check_store()
            if verdict is not None:
                return self._end(verdict)
            time.sleep(self._timing.poll_s)

    def _check_asked(self) -> Ending | None:
        """Pass on that somebody wants the attempt to stop; once its window is over, it is."""
        asked = self._ask()
        if asked is not None and self._asked is None:
            self._asked = asked
            self._kill_at = time.monotonic() + self._timing.notice_s + _AFTER_WINDOW_S
            logger.info("attempt %d: %s; it has %.0f s", self._handle.attempt, asked.detail, self._timing.notice_s)
            self._backend.notice(self._handle, Notice(asked.reason, self._timing.notice_s))
        if self._asked is None:
            return None
        is_over = time.monotonic() >= self._kill_at or (asked is not None and asked.at_once)
        return Ending(self._asked.reason, f"{self._asked.detail}; killed") if is_over else None

    def _check_store(self) -> Ending | None:
        """Look whether the node still renews its lease, and is still the newest."""
        now = time.monotonic()
        if now < self._look_at_store_at:
            return None
        self._look_at_store_at = now + self._timing.store_poll_s
        number = self._handle.attempt
        try:
            counter = self._log.read_lease(number)
            newest = self._log.newest()
        except CheckpointError as exc:
            logger.warning("attempt %d cannot be seen in the store: %s", number, exc)
            return None
        if newest > number:
            return Ending(StopReason.SUPERSEDED, f"attempt {newest} was claimed by another launcher")
        if self._lease.is_stalled(counter, time.monotonic()):
            if counter is None:
                return Ending(StopReason.LOST, f"it did not begin within {self._timing.claim_s:.0f} s")
            return Ending(StopReason.LOST, f"its lease stood still for {self._timing.lease_s:.0f} s")
        return None

    def _end(self, verdict: Ending) -> Ending:
        """End the node, and say what is known of it; that it was done stands, whatever was meant to stop it."""
        reached = self._sweep()
        recorded = self._recorded()
        if recorded is not None and recorded.reason is StopReason.DONE:
            verdict = recorded
        return replace(verdict, reached=reached, is_recorded=recorded is not None)

    def _after_exit(self, exit_code: int | None) -> Ending:
        """Judge a node whose main process is gone: by its own end record, else by its exit code."""
        reached = self._sweep()
        recorded = self._recorded()
        if recorded is not None and (self._asked is None or recorded.reason is StopReason.DONE):
            return replace(recorded, reached=reached)
        verdict = self._judge_exit(exit_code)
        return replace(verdict, reached=reached, is_recorded=recorded is not None)

    def _judge_exit(self, exit_code: int | None) -> Ending:
        detail = describe_exit(exit_code)
        if self._asked is not None:
            return Ending(self._asked.reason, f"{self._asked.detail}; {detail}")
        reason = reason_of_exit(exit_code)
        if reason is StopReason.DONE:
            return Ending(StopReason.CRASHED, "it left with exit code 0, but without recording that it was done")
        if reason is StopReason.SUPERSEDED:
            return self._judge_superseded()
        return Ending(reason, detail)

    def _judge_superseded(self) -> Ending:
        """A node left because it may write no more: did somebody else take the run, or could it not renew its lease?"""
        records = patiently(self._log.records, self._timing.store_patience_s)
        others = [record.number for record in records if record.claim and record.number > self._handle.attempt]
        own = next((record.claim for record in records if record.number == self._handle.attempt), None)
        # Two launchers that resume at once hand out the same number; the claim says whose node it is.
        if own is not None and own.get("node", self._handle.nonce) != self._handle.nonce:
            others.append(self._handle.attempt)
        if others:
            return Ending(StopReason.SUPERSEDED, f"attempt {max(others)} was claimed by another launcher")
        return Ending(StopReason.LOST, "it could not renew its lease, and left")

    def _sweep(self) -> tuple[str, int] | None:
        """End whatever is left of the node (Ray's daemons outlive its main process); say how far it had come."""
        marks = self._backend.marks(self._handle)
        self._backend.kill(self._handle)
        return marks.reached if marks else None

    def _recorded(self) -> Ending | None:
        """Read the node's own end record; None: there is none."""
        records = patiently(self._log.records, self._timing.store_patience_s)
        end = next((one.end for one in records if one.number == self._handle.attempt), None)
        if end is None:
            return None
        exit_code = end.get("exit_code")
        return Ending(
            reason=StopReason(end["stop_reason"]),
            detail=str(end.get("detail", "")),
            retryable=bool(end.get("retryable", True)),
            exit_code=exit_code if isinstance(exit_code, int) else None,
            is_recorded=True,
        )


def patiently(act: Callable[[], T], patience_s: float, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """Do something with the store, again and again for at most `patience_s` while it does not answer.

    Raises:
        CheckpointError: what it said last, or at once if trying again cannot help.
    """
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except CheckpointError as exc:
            if not exc.retryable or time.monotonic() >= give_up_at:
                raise
            logger.warning("the store does not answer, trying again: %s", exc)
            sleep(_STORE_PAUSE_S)
