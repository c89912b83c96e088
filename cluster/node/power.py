"""Turning the machine off that this runs on, so that nobody pays for one that nobody needs.

SkyPilot's controller takes a machine down when its task has ended. Where there is no controller any more (the laptop
was shut, the controller's machine was lost), nobody would. So the machine's own operating system is asked to shut down,
and keeps that in mind whatever becomes of our processes:

    set-up begins           in SETUP_MIN           sky/run.yaml
    the node works          in HELD_MIN, put off again and again while it holds its lease
    the attempt has ended   in AFTER_END_MIN       after a limit in AFTER_LIMIT_MIN; replaced by another machine: now

A node that is killed, hangs as a whole, or never starts no longer puts it off. Only machines that were rented for the
run are turned off (RENTED_VARIABLE, which sky/run.yaml sets), never one of the user's own cluster.

What a cloud makes of a machine that turns itself off: AWS and GCP stop billing it (a spot machine of AWS is gone,
others keep their disk, which is a few cents a day); Azure goes on billing until it is deallocated, and `alpaca-jobs
doctor` names it. Source: "Differences between instance states" (EC2 User Guide), "Stop a VM" (Compute Engine), "States
and billing" (Azure Virtual Machines). 2026-11.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import psutil

from cluster.recovery import StopReason

logger = logging.getLogger(__name__)

RENTED_VARIABLE: Final = "ALPACA_JOBS_RENTED"
SETUP_MIN: Final = 60  # torch and vLLM from a slow mirror
# systemd lets nobody log in during the last 5 minutes before a shutdown (logind creates /run/nologin), and SkyPilot
# has to: so the time left is never below 10 minutes while somebody works, nor below 5 in the minute after the end.
HELD_MIN: Final = 15
AFTER_END_MIN: Final = 10  # SkyPilot looks every 15 s and needs about a minute to take a machine down
AFTER_LIMIT_MIN: Final = 6
_LIMITS: Final = frozenset({StopReason.BUDGET, StopReason.DEADLINE, StopReason.CANCELLED})
_PUT_OFF_EVERY_S: Final = 240.0
_HELD_FOR_S: Final = 60.0
_TIMEOUT_S: Final = 10.0


class PowerSwitch:
    """Keeps a rented machine on while somebody says that he needs it, and turns it off after that.

    Args:
        is_rented: False where the machine is not ours to turn off: then nothing here does anything.
        off_in: asks the operating system; returns whether it took the wish.
    """

    def __init__(
        self,
        *,
        is_rented: bool,
        off_in: Callable[[int], bool] | None = None,
        put_off_every_s: float = _PUT_OFF_EVERY_S,
        held_for_s: float = _HELD_FOR_S,
    ) -> None:
        self._is_rented, self._off_in = is_rented, off_in or (lambda minutes: power_off(in_minutes=minutes))
        self._put_off_every_s, self._held_for_s = put_off_every_s, held_for_s
        self._held_at = time.monotonic()
        self._stopping = threading.Event()

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> PowerSwitch:
        """The switch of the machine that a task's environment is of; a task that does not say is on a rented one."""
        return cls(is_rented=bool(environ.get(RENTED_VARIABLE, "yes")))

    def start(self) -> None:
        """Put off what the set-up has asked for, and go on doing so while it is held."""
        if self._is_rented and self._off_in(HELD_MIN):
            threading.Thread(target=self._watch, name="power-switch", daemon=True).start()

    def hold(self) -> None:
        """The machine is needed now; to be said more often than once a minute."""
        self._held_at = time.monotonic()

    def let_go(self, *, in_minutes: int = 0) -> None:
        """Nobody needs it any more."""
        self._stopping.set()
        if self._is_rented:
            self._off_in(in_minutes)

    def _watch(self) -> None:
        while not self._stopping.wait(self._put_off_every_s):
            if time.monotonic() - self._held_at <= self._held_for_s:
                self._off_in(HELD_MIN)


def minutes_after(reason: StopReason) -> int:
    """How long a machine stays on after an attempt's end, for SkyPilot to read its exit code and to take it down."""
    return AFTER_LIMIT_MIN if reason in _LIMITS else AFTER_END_MIN


def power_off(*, in_minutes: int = 0) -> bool:
    """Let the operating system shut down, now or in some minutes; a later call changes the time.

    Returns:
        False where it refused or has no such command (containers): said in the log, and nothing else happens.
    """
    when = "now" if in_minutes == 0 else f"+{in_minutes}"
    return _shutdown("-h", when, "alpaca-jobs: nobody needs this machine any more")


def started_at_s() -> float:
    """When this machine started, in seconds since 1970: the birth of its process 1, true in a container as well."""
    return psutil.Process(1).create_time()


def _shutdown(*arguments: str) -> bool:
    command = ["shutdown", *arguments] if os.geteuid() == 0 else ["sudo", "-n", "shutdown", *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as exc:
        logger.warning("%s: %s", " ".join(command), exc)
        return False
    if done.returncode:
        logger.warning("%s: %s", " ".join(command), done.stderr.strip()[-500:])
    return done.returncode == 0
