"""Dedupe's shards as actors of a Ray of their own on this machine, for the length of one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alpaca_jobs.generation.sharded import Shard
from cluster.node.actor_runtime import ActorRuntime
from cluster.node.ray_runtime import RayRuntime


class ActorShards:
    """Shards that run where a runtime puts its actors."""

    def __init__(self, runtime: ActorRuntime, count: int, threshold: float) -> None:
        """Start `count` actors; one call at a time each, so that their calls keep their order."""
        self._runtime = runtime
        self._actors = runtime.actors(Shard, count, threshold, concurrency=1)

    @property
    def count(self) -> int:
        """As Shards says."""
        return len(self._actors)

    def call(self, shard: int, method: str, *args: Any) -> Any:
        """As Shards says."""
        return self._runtime.call(self._actors[shard], method, *args)

    def result(self, call: Any) -> Any:
        """As Shards says."""
        return self._runtime.result(call)


@contextmanager
def ray_shards(count: int, threshold: float) -> Iterator[ActorShards]:
    """Start a private Ray with one actor per shard; all of it is gone afterwards.

    Raises:
        RayFailure: Ray did not come up, or one of its processes died.
    """
    runtime = RayRuntime(num_cpus=count, name=f"dd{os.getpid()}", env={})
    try:
        runtime.start()
        yield ActorShards(runtime, count, threshold)
    finally:
        runtime.stop()
