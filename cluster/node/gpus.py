"""Does this machine have the GPUs it was bought for? Asked before anything starts: a job never silently does without.

`nvidia-smi` is asked, which comes with the driver and answers in well under a second; torch finds out by itself later
whether it can use them, and its training ranks name a GPU, so that they fail where there is none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from cluster.errors import NodeLost

_ASK: Final = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
_TIMEOUT_S: Final = 60.0  # the first call after boot loads the driver


def check_gpus(wanted: str | None, *, list_gpus: Callable[[], Sequence[str]] | None = None) -> None:
    """Raise unless at least the wanted GPUs are there.

    Args:
        wanted: NAME:COUNT as the placement has it; None: nothing is checked.
        list_gpus: returns the names of the GPUs that are there; None to ask the driver.

    Raises:
        NodeLost: some are missing, or the driver does not answer; another machine may be whole.
    """
    if wanted is None:
        return
    name, _, count = wanted.partition(":")
    found = (list_gpus or _list_gpus)()
    if len(found) < int(count or 1):
        there = ", ".join(found) if found else "none"
        raise NodeLost(
            f"This machine was bought with {count or 1} x {name}, but its driver shows {len(found)} ({there}). Nothing "
            "was started on it; another machine is tried."
        )


def _list_gpus() -> list[str]:
    try:
        done = subprocess.run(_ASK, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except FileNotFoundError as exc:
        raise NodeLost("This machine was bought with GPUs, but it has no nvidia-smi, so no driver for them.") from exc
    except subprocess.CalledProcessError as exc:
        said = (exc.stderr or exc.stdout).strip()[-300:]
        raise NodeLost(f"This machine was bought with GPUs, but their driver does not work: {said}") from exc
    except subprocess.TimeoutExpired as exc:
        raise NodeLost(f"This machine's GPU driver did not answer within {_TIMEOUT_S:.0f} s.") from exc
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
