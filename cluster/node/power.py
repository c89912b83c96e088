"""Turning the machine off that this runs on, so that nobody pays for one that nobody needs.

SkyPilot's controller takes a machine down when its task has ended. Where there is no controller any more (the laptop
was shut, the controller's machine was lost), nobody would. So a node asks its own operating system to shut down: at
once when it lost its lease, some minutes after its last word otherwise. What a cloud makes of a machine that turns
itself off: AWS and GCP stop billing it (a spot machine of AWS is gone, others keep their disk, which is a few cents a
day); Azure goes on billing until it is deallocated, and `alpaca-jobs doctor` names it.
Source: "Differences between instance states" (EC2 User Guide), "Stop a VM" (Compute Engine), "States and billing"
(Azure Virtual Machines). 2026-11.
"""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Final

import psutil

logger = logging.getLogger(__name__)

AFTER_END_MIN: Final = 10  # SkyPilot looks every 15 s and needs about a minute to take a machine down
_TIMEOUT_S: Final = 10.0


def power_off(*, in_minutes: int = 0) -> bool:
    """Let the operating system shut down, now or in some minutes; it keeps that in mind after this process is gone.

    Returns:
        False where it refused or has no such command (containers): said in the log, and nothing else happens.
    """
    when = "now" if in_minutes == 0 else f"+{in_minutes}"
    return _shutdown("-h", when, "alpaca-jobs: nobody needs this machine any more")


def stay_on() -> None:
    """Take back a shutdown that an earlier node of this machine has asked for."""
    _shutdown("-c")


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
