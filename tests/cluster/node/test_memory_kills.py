"""How many processes the system has killed for memory, read where Linux counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.node.memory_kills import memory_kills

V2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
VMSTAT = "pgfault 7\noom_kill 9\ndrop_pagecache 0\n"


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.events": V2, "proc/vmstat": VMSTAT}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.events": V2, "proc/vmstat": VMSTAT}, 2),
        ({"proc/self/cgroup": "4:memory:/x\n0::/\n", "sys/fs/cgroup/memory/x/memory.oom_control": V1}, 5),
        ({"proc/self/cgroup": "4:memory:/seen/outside\n", "sys/fs/cgroup/memory/memory.oom_control": V1}, 5),
        ({"proc/self/cgroup": "0::/\n", "proc/vmstat": VMSTAT}, 9),
        ({}, 0),
    ],
)
def test_kills_are_counted_where_this_process_is(tmp_path: Path, files: dict[str, str], kills: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_kills(tmp_path) == kills


def test_this_machine_counts() -> None:
    assert memory_kills() >= 0
