"""Copies beside training made slow, so that what they must not see has time to happen: a test helper."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from checkpoints.torch_overlap import LateCopy, Move


@contextmanager
def slow_copies(
    copied: Callable[[str, bool], object], *, begin_within_s: float, each_s: float
) -> Iterator[None]:  # fmt: skip
    """What is copied beside training is begun when somebody waits for it, or after a while, and waits at each tensor.

    Args:
        copied: told the name of every tensor, and whether it was copied beside training.
    """
    make, copy_all = Move.make, LateCopy._copy

    def when_awaited(copy: LateCopy) -> None:
        until = time.monotonic() + begin_within_s
        while copy._moves and copy._waiting_since is None and time.monotonic() < until:
            time.sleep(0.002)
        copy_all(copy)

    def slowly(move: Move) -> None:
        is_late = threading.current_thread().name.startswith("save-")
        if is_late:
            time.sleep(each_s)
        make(move)
        copied(move.name, is_late)

    Move.make, LateCopy._copy = slowly, when_awaited  # type: ignore[method-assign]
    try:
        yield
    finally:
        Move.make, LateCopy._copy = make, copy_all  # type: ignore[method-assign]
