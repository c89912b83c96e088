"""Whether the system has killed a process of this machine for memory: a rank that dies so leaves no error of its own.

Linux counts it, for the control group of this process (a container, a service) or, without one, for the machine.
Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, `memory.events`; cgroup-v1/memory.html, `memory.oom_control`
(its `oom_kill` and that of `/proc/vmstat`: since Linux 4.13).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


def memory_kills(root: Path = Path("/")) -> int:
    """How many processes were killed for memory since the group, or the machine, was made; 0 where nobody counts.

    Args:
        root: of the file system, for tests.
    """
    for path in (*_of_group(root), root / "proc/vmstat"):
        try:
            found = _COUNT.search(path.read_text())
        except OSError:
            continue
        if found is not None:
            return int(found[1])
    return 0


def _of_group(root: Path) -> Iterator[Path]:
    """Where the group's count may be: a container sees its own group as the root of all, or by its path."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            folders, file = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"], "memory.events"
        elif "memory" in controllers.split(","):
            folders, file = [root / "sys/fs/cgroup/memory"], "memory.oom_control"
        else:
            continue
        for folder in folders:
            yield folder / name.lstrip("/") / file
            yield folder / file
