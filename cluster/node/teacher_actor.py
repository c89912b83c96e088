"""What runs in a generation actor: ask the teacher, store the paid answer, return it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from alpaca_jobs.errors import TeacherGarbage
from alpaca_jobs.generation.completer import Absence, Completer, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.rate_limit import RateNews
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import TeacherSpec
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.store import Store
from cluster.node.actor_runtime import Peer
from cluster.node.ledger import store_answer

logger = logging.getLogger(__name__)

_RECENT_S = 1.0


class TeacherActor:
    """One process that keeps several requests in flight; Ray runs it as an asynchronous actor.

    Args:
        teacher: whom to ask; the key is read from this process's environment by the name it gives.
        store_uri, run_id, attempt: where answers are stored, and on whose behalf.
        gate: a RateGate that all actors share, as a peer; None for one of its own.
        key: instead of the environment's, for a server that the attempt started itself.
    """

    def __init__(
        self, teacher: dict[str, Any], store_uri: str, run_id: str, attempt: int, gate: Peer | None = None,
        key: str | None = None,
    ) -> None:  # fmt: skip
        """Open the store and the teacher's client."""
        spec = TeacherSpec.model_validate(teacher)
        if key is None and spec.api_key_env:
            key = os.environ.get(spec.api_key_env)
        self._completer = Completer(spec, api_key=key, gate=None if gate is None else SharedGate(gate))
        self._store = Store.open(store_uri).child(run_id)
        self._attempt = attempt
        self._fence = RecentFence(Fence(AttemptLog(self._store, LAYOUT), attempt))

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Return the stored answer to one request; one that was never usable is stored, too, since it was paid for.

        Raises:
            TeacherError: after the completer's own bounded retries.
            StoreError: the answer could not be stored; it is lost, and asked again by the next attempt.
            Superseded: a newer attempt exists, which has asked again already; this answer is nobody's.
        """
        try:
            answer = await self._completer.complete(request)
        except TeacherGarbage as exc:
            # One request that stays garbage is a drop, not the end; a teacher of nothing else is given up by count.
            if not isinstance(exc.answer, TeacherAnswer):
                raise
            logger.warning("given up, and counted as unusable: %s", exc)
            answer = exc.answer
        await asyncio.to_thread(self._keep, answer)
        return answer

    async def absence(self) -> Absence | None:
        """Since when the teacher has answered nobody here, and why; None while it answers."""
        return self._completer.absence

    async def close(self) -> None:
        """Close the teacher's connections."""
        await self._completer.close()

    def _keep(self, answer: TeacherAnswer) -> None:
        self._fence.check()
        store_answer(self._store, self._attempt, answer)


class SharedGate:
    """The gate of all actors, as one of them sees it."""

    def __init__(self, peer: Peer) -> None:
        """Take the actor that is the gate."""
        self._peer = peer

    async def enter(self) -> None:
        """Wait until the next try may be sent."""
        await self._peer.ask("enter")

    async def tell(self, news: RateNews) -> None:
        """Pass on what a try told."""
        await self._peer.ask("tell", news)


class RecentFence:
    """A fence asked at most once a second: answers come by the dozen, and each look costs a listing.

    A process that was stopped for longer finds its last look too old and asks again before it writes anything.
    """

    def __init__(self, fence: Fence, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the fence to ask."""
        self._fence = fence
        self._clock = clock
        self._asked_at = float("-inf")
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise Superseded as the fence does, from a look at most a second old."""
        with self._lock:
            if self._clock() - self._asked_at > _RECENT_S:
                self._fence.check()
                self._asked_at = self._clock()
