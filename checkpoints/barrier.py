"""Exchange: how ranks meet. Everybody brings a value and leaves with everybody's; nobody leaves before all came.

A barrier that carries values is all the commit protocol needs: each rank brings what it stored or how it failed, so a
failure on one rank reaches every rank. `Alone` is one process, `ThreadExchange` is for threads of one process;
torch_group.py has the one over a process group.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from checkpoints.errors import CheckpointError


class Exchange(Protocol):
    """`gather` is called equally often by every rank, in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def gather(self, value: Any) -> Sequence[Any]:
        """Bring `value`; returns the values of all ranks, by rank.

        Raises:
            RanksParted: a rank did not come in time, or died.
        """
        ...


class RanksParted(CheckpointError):
    """A rank did not come to a meeting, so nothing that needs all of them can go on."""


class Alone:
    """The exchange of a single process."""

    rank = 0
    world_size = 1

    def gather(self, value: Any) -> Sequence[Any]:
        return [value]


class ThreadExchange:
    """One rank's seat at a table of threads; `seats(n)` makes all of them."""

    def __init__(self, rank: int, table: _Table) -> None:
        self.rank = rank
        self.world_size = len(table.values)
        self._table = table

    @classmethod
    def seats(cls, world_size: int, *, timeout_s: float = 60.0) -> list[ThreadExchange]:
        table = _Table(world_size, timeout_s)
        return [cls(rank, table) for rank in range(world_size)]

    def gather(self, value: Any) -> Sequence[Any]:
        try:
            self._table.values[self.rank] = value
            self._table.barrier.wait()
            gathered = list(self._table.values)
            self._table.barrier.wait()  # nobody brings the next value before all have read this one
        except threading.BrokenBarrierError as exc:
            raise RanksParted(
                f"rank {self.rank} of {self.world_size} waited {self._table.timeout_s:g} s and not all came. "
                "A rank has died or is stuck; end the others and start again from the newest commit."
            ) from exc
        return gathered


class _Table:
    def __init__(self, world_size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.values: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=timeout_s)
