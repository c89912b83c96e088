"""How a node says why it left: its exit code, and how the supervisor says why it should leave.

The node's own end record is the better witness; the exit code is what remains when the store could not be reached,
and the signal is what remains when the node could not speak at all.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cluster.recovery import StopReason

NOTICE_FILE: Final = "notice.json"

NODE_EXITS: Final[Mapping[StopReason, int]] = MappingProxyType(
    {
        StopReason.DONE: 0,
        StopReason.CRASHED: 1,  # also what an uncaught exception gives
        StopReason.USER_ERROR: 2,
        StopReason.STORE_FAILURE: 3,
        StopReason.BUDGET: 4,
        StopReason.DEADLINE: 5,
        StopReason.PREEMPTED: 75,  # EX_TEMPFAIL of sysexits.h: it saved what fits and left
        StopReason.NODE_FAILURE: 76,
        StopReason.OUT_OF_MEMORY: 77,
        StopReason.SUPERSEDED: 78,
        StopReason.REVIEW: 79,
        StopReason.DIVERGED: 81,
        StopReason.CANCELLED: 130,
    }
)
"""Exit code of `python -m cluster.node.main` for each stop reason it can give itself.

A part of a run that is done (`part_done`, in a chain of SkyPilot's tasks) exits with 0 as well: the next task starts.
"""

NOTHING_FOLLOWS: Final = 80
"""A cloud's node leaves with it where no other machine is to be started, and its reason's own code would ask for one.

SkyPilot starts a task again for every code of the task's `recover_on_exit_codes`, without a limit.
"""
SET_UP_FAILED: Final = 65
"""EX_DATAERR of sysexits.h; the set-up of a cloud's machine (sky/run.yaml) ends with it."""

_REASONS: Final = MappingProxyType({code: reason for reason, code in NODE_EXITS.items()})
# A program that dies of its own fault; any other signal came from outside.
_OWN_FAULTS: Final = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGBUS})


def reason_of_exit(exit_code: int | None) -> StopReason:
    """Read a stop reason off an exit code; negative codes are signals, as in `subprocess`, and 128 + n counts too.

    None means that nobody saw the process end (its supervisor had died before it): then it is `lost`.
    """
    if exit_code is None:
        return StopReason.LOST
    known = _REASONS.get(exit_code)
    if known is not None:
        return known
    number = -exit_code if exit_code < 0 else exit_code - 128
    if number in _OWN_FAULTS:
        return StopReason.CRASHED
    if number == signal.SIGTERM:
        return StopReason.PREEMPTED
    if number in {int(one) for one in signal.Signals}:
        return StopReason.LOST
    return StopReason.CRASHED


def describe_exit(exit_code: int | None) -> str:
    """Say an exit code in words: `exit code 1`, `killed by SIGKILL`."""
    if exit_code is None:
        return "ended unseen"
    number = -exit_code if exit_code < 0 else exit_code - 128
    if exit_code not in _REASONS and number in {int(one) for one in signal.Signals}:
        return f"killed by {signal.Signals(number).name}"
    return f"exit code {exit_code}"


@dataclass(frozen=True)
class Notice:
    """Why a node is asked to leave (SIGTERM), and how many seconds it has before it is killed."""

    reason: StopReason
    window_s: float


def write_notice(scratch: Path, notice: Notice) -> None:
    """Leave the notice where the node finds it; to be called before the signal is sent."""
    temporary = scratch / f".{NOTICE_FILE}.tmp"
    temporary.write_text(json.dumps({"reason": notice.reason.value, "window_s": notice.window_s}))
    temporary.replace(scratch / NOTICE_FILE)


def read_notice(scratch: Path, *, window_s: float = 30.0) -> Notice:
    """Return the notice of a node that got SIGTERM; without a file the signal came from the machine: a preemption."""
    try:
        body = json.loads((scratch / NOTICE_FILE).read_text())
    except FileNotFoundError:
        return Notice(StopReason.PREEMPTED, window_s)
    return Notice(StopReason(body["reason"]), float(body["window_s"]))
