"""A machine that is not the head: it joins the head's Ray, lends its processors, and leaves when the attempt is over.

It writes nothing of the run. How the attempt ended is the head's to say; this machine leaves with the same reason.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from checkpoints.store import Store
from cluster.errors import NodeLost, RayFailure
from cluster.exits import Notice
from cluster.node.node_group import NodeGroup, answers, pass_notice
from cluster.node.ray_runtime_member import RayMember
from cluster.recovery import StopReason

logger = logging.getLogger(__name__)

MEET_WITHIN_S = 300.0  # machines of one attempt are set up at the same time, but not equally fast
STANDSTILL_S = 40.0  # twice the lease
_LOOK_EVERY_S = 1.0
_LAST_WORD_S = 10.0  # from the head's Ray going away to its end record being readable


@dataclass
class Member:
    """One attempt as a member sees it.

    Attributes:
        notices: notices of this machine, as its signal handler appends them.
        alive: called about once a second for as long as the head is waited for, or seen to work.
    """

    store: Store
    log: AttemptLog
    attempt: int
    group: NodeGroup
    ray: RayMember
    notices: list[Notice]
    meet_within_s: float = MEET_WITHIN_S
    standstill_s: float = STANDSTILL_S
    alive: Callable[[], object] = lambda: None

    def run(self) -> StopReason:
        """Join and stay until the attempt is over; returns how it ended."""
        try:
            if (early := self._wait_for_head()) is not None:
                return early
            logger.info("machine %d joined %s after %.1f s", self.group.rank, self.group.meeting_point, self.ray.join())
            return self._stay()
        except RayFailure as exc:
            logger.error("machine %d of attempt %d: %s", self.group.rank, self.attempt, exc)
            return StopReason.NODE_FAILURE
        finally:
            self.ray.leave()

    def _wait_for_head(self) -> StopReason | None:
        give_up_at = time.monotonic() + self.meet_within_s
        while not answers(self.group.addresses[0], self.group.ray_port):
            if (ended := self._ended()) is not None:
                return ended
            if time.monotonic() > give_up_at:
                logger.error(
                    "nobody answered at %s within %.0f s; this machine leaves", self.group.meeting_point,
                    self.meet_within_s,
                )  # fmt: skip
                return StopReason.NODE_FAILURE
            self.alive()
            time.sleep(_LOOK_EVERY_S / 2)
        return None

    def _stay(self) -> StopReason:
        counter, seen_at, gone_at = None, time.monotonic(), 0.0
        while True:
            self._pass_notices()
            if (ended := self._ended()) is not None:
                return ended
            now = time.monotonic()
            if not self.ray.is_up and not gone_at:
                gone_at = now
            if gone_at and now - gone_at > _LAST_WORD_S:
                logger.error("the head is gone without a word; this machine leaves")
                return StopReason.NODE_FAILURE
            newest = self._lease()
            if newest != counter:
                counter, seen_at = newest, now
            elif now - seen_at > self.standstill_s:
                logger.error("the head's lease stood still for %.0f s; this machine leaves", now - seen_at)
                return StopReason.NODE_FAILURE
            self.alive()
            time.sleep(_LOOK_EVERY_S)

    def _pass_notices(self) -> None:
        if self.notices:
            notice = self.notices[0]
            try:
                pass_notice(self.store, self.attempt, self.group.rank, notice)
            except CheckpointError as exc:
                logger.warning("the notice could not be passed on: %s", exc)

    def _ended(self) -> StopReason | None:
        """How the attempt ended, if it did; a newer attempt ends this one as well."""
        try:
            present = self.log.present()
            if any(number > self.attempt and "claim" in kinds for number, kinds in present.items()):
                return StopReason.SUPERSEDED
            if "end" not in present.get(self.attempt, ()):
                return None
            records = self.log.records()
        except CheckpointError as exc:
            logger.warning("the store does not say how the attempt stands: %s", exc)
            return None
        end = next((one.end for one in records if one.number == self.attempt), None) or {}
        reason = StopReason(end.get("stop_reason", StopReason.LOST))
        return StopReason.NODE_FAILURE if reason is StopReason.LOST else reason

    def _lease(self) -> int | None:
        try:
            return self.log.read_lease(self.attempt)
        except CheckpointError:
            return None


class GroupWatch:
    """The head's look at its members: finds out within seconds that one is gone.

    Args:
        ray_ports: host and port of each member's Ray, by rank from 1.
        on_lost: called once, with what is lost.
    """

    def __init__(self, ray_ports: Sequence[tuple[str, int]], *, on_lost: Callable[[NodeLost], None]) -> None:
        self._ports, self._on_lost = tuple(ray_ports), on_lost
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="group-watch", daemon=True)
        if self._ports:
            self._thread.start()

    def look_closely(self, *, for_s: float = 3.0, silent_s: float = 10.0) -> None:
        """After something failed: was it a machine? Processes of a dying machine go one after the other.

        A machine that was taken away whole refuses nothing, it is only silent: after a failure that is enough.

        Args:
            for_s: how long to wait for the usual sign, a port that refuses.
            silent_s: how long a machine has to be silent after that.
        """
        if not self._ports or self._lost.wait(for_s):
            return
        silent = {rank: place for rank, place in enumerate(self._ports, start=1) if answers(*place) is None}
        give_up_at = time.monotonic() + silent_s
        while silent and time.monotonic() < give_up_at and not self._lost.wait(_LOOK_EVERY_S):
            silent = {rank: place for rank, place in silent.items() if answers(*place) is None}
        if silent and not self._lost.is_set():
            rank, (address, _) = min(silent.items())
            self._lose(rank, address, "it has stopped answering")

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            for rank, (address, port) in enumerate(self._ports, start=1):
                # No answer at all may be a slow network; Ray itself gives such a machine up after half a minute.
                if answers(address, port) is False:
                    self._lose(rank, address, f"nothing answers at its port {port}")
                    return

    def _lose(self, rank: int, address: str, why: str) -> None:
        self._on_lost(NodeLost(f"machine {rank} of the attempt ({address}) is gone: {why}."))
        self._lost.set()
