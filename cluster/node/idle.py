"""A process that does nothing until the raylet is gone: what it gets in place of its agents (ray_runtime_small.py).

Started as a file, without this package and without site-packages: it has to cost nothing.
"""

from __future__ import annotations

import os
import sys
import time

AGENT_FLAGS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
"""What a raylet is told of its two agents (Ray 2.60: ray/_private/services.py, start_raylet)."""


def without_agents(command: list[str]) -> list[str] | None:
    """A raylet's command line with this program in place of each agent; None if it does not name both.

    Args:
        command: as Ray makes it; the agents' own command lines are one argument each.
    """
    from subprocess import list2cmdline

    idle = list2cmdline([sys.executable, "-I", "-S", __file__])
    put = {flag: flag + idle for flag in AGENT_FLAGS}
    if any(not any(part.startswith(flag) for part in command) for flag in put):
        return None
    return [next((put[flag] for flag in AGENT_FLAGS if part.startswith(flag)), part) for part in command]


if __name__ == "__main__":
    raylet = int(os.environ.get("RAY_RAYLET_PID") or os.getppid())
    while os.getppid() == raylet:
        time.sleep(0.5)
