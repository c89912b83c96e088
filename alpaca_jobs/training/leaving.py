"""What training does with a notice: save the very step if that fits into what is left, else say what is repeated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from alpaca_jobs.training.saving import SaveSchedule, fits_notice


class Saves(Protocol):
    """What is wanted of an attempt's saves (saves.py)."""

    @property
    def schedule(self) -> SaveSchedule:
        """What saves cost here."""
        ...

    @property
    def committed(self) -> int:
        """The newest step that is committed."""
        ...

    def wait(self) -> None:
        """Wait for what is under way."""
        ...

    def save_and_wait(self) -> None:
        """Commit the state as it is."""
        ...


def save_for_notice(
    saves: Saves,
    *,
    step: int,
    seconds_left: float,
    agree: Callable[[float, float], tuple[float, float]],
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Save `step` if the window allows it. A collective: every rank calls it at the same step.

    A save that is under way has to finish first. How long that takes is measured and not guessed: a guess would have to
    be careful, and give a step away for which there was time.

    Args:
        seconds_left: until the machine is taken away, as all ranks agreed.
        agree: makes one of every rank's seconds left and estimate of a save, seconds.

    Returns:
        What was done, in words.
    """
    began = clock()
    saves.wait()
    left, estimate_s = agree(seconds_left - (clock() - began), saves.schedule.estimate_s)
    known = f"a save takes {estimate_s:.1f} s here" if estimate_s else "no save was measured yet"
    if fits_notice(left, estimate_s=estimate_s):
        saves.save_and_wait()
        return f"Notice with {seconds_left:.1f} s left ({known}): step {saves.committed} was saved."
    return (
        f"Notice with {seconds_left:.1f} s left, but {known}, so none was begun: step {saves.committed} is the newest "
        f"committed, {step - saves.committed} steps will be repeated."
    )
