"""Where the generation's actors run: what the stage needs of a runtime, and the one without Ray, in this process.

RayRuntime (ray_runtime.py) is the other: processes of their own, on one node or many. In this process is enough where
a command asks a teacher by itself; asking is waiting, so that one event loop keeps hundreds of requests in flight.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_futures
from typing import Any, Protocol


class Peer(Protocol):
    """One actor as another one calls it; can be sent to another process."""

    async def ask(self, method: str, *args: Any) -> Any:
        """Await one of its methods."""


class ActorRuntime(Protocol):
    """Actors and their calls. Calls are handed around as they are; one driver thread uses a runtime."""

    def actors(
        self, factory: type, count: int, *args: Any, concurrency: int, cpus: int = 1, **kwargs: Any
    ) -> list[Any]:
        """Start `count` actors of a class; each runs up to `concurrency` calls at once and books `cpus`."""

    def peer(self, actor: Any) -> Peer:
        """An actor as others may be handed it."""

    def call(self, actor: Any, method: str, *args: Any) -> Any:
        """Start one call of an actor's method."""

    def wait(self, calls: Sequence[Any], *, timeout_s: float) -> tuple[list[Any], list[Any]]:
        """The calls that are finished, and the rest; returns as soon as one is finished or the time is up."""

    def result(self, call: Any) -> Any:
        """The value of a finished call; what the call raised is raised as itself."""

    def end_actors(self, actors: Iterable[Any]) -> None:
        """End actors at once, with the calls that they still run."""


class _Here:
    """A peer on the same event loop."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def ask(self, method: str, *args: Any) -> Any:
        return await getattr(self._actor, method)(*args)


class InProcessActors:
    """Actors as objects of this process; their methods are coroutines on one event loop in a thread of its own.

    Use as a context. The caller bounds how many calls run at once.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="actors", daemon=True)
        self._running: set[Future[Any]] = set()

    def __enter__(self) -> InProcessActors:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def peer(self, actor: Any) -> Peer:
        """As ActorRuntime says."""
        return _Here(actor)

    def actors(
        self, factory: type, count: int, *args: Any, concurrency: int, cpus: int = 1, **kwargs: Any
    ) -> list[Any]:
        """Make `count` objects; the caller bounds how much they do at once."""
        return [factory(*args, **kwargs) for _ in range(count)]

    def call(self, actor: Any, method: str, *args: Any) -> Future[Any]:
        """Start a coroutine method on the loop."""
        future = asyncio.run_coroutine_threadsafe(getattr(actor, method)(*args), self._loop)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def wait(self, calls: Sequence[Any], *, timeout_s: float) -> tuple[list[Any], list[Any]]:
        """As ActorRuntime says."""
        if not calls:
            time.sleep(timeout_s)
            return [], []
        done, _ = wait_for_futures(calls, timeout=timeout_s, return_when=FIRST_COMPLETED)
        return [call for call in calls if call in done], [call for call in calls if call not in done]

    def result(self, call: Any) -> Any:
        """As ActorRuntime says."""
        return call.result()

    def end_actors(self, actors: Iterable[Any]) -> None:
        """Cancel every call and close the actors, whose `close` is a coroutine."""
        for future in list(self._running):
            future.cancel()
        for actor in actors:
            asyncio.run_coroutine_threadsafe(actor.close(), self._loop).result()
