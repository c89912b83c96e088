"""Marking a node's processes and killing all of them, whatever sessions and parents they have moved to.

Every process of a node inherits ALPACA_JOBS_NODE=<nonce> through its environment, which no setsid, double fork or
death of a parent takes away (Ray's daemons do all three). Some of Ray's processes write their title over their
environment, though (two agents of the raylet, Ray 2.60), so the descendants of marked processes belong to the node
as well, and whoever was seen once stays on the list after its parent is gone.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from cluster.errors import ClusterError

HOME_VARIABLE: Final = "ALPACA_JOBS_HOME"
NODE_MARK: Final = "ALPACA_JOBS_NODE"
RUN_MARK: Final = "ALPACA_JOBS_RUN"
ATTEMPT_MARK: Final = "ALPACA_JOBS_ATTEMPT"
REGION_MARK: Final = "ALPACA_JOBS_REGION"
RANK_MARK: Final = "ALPACA_JOBS_NODE_RANK"
_LOOK_AGAIN_S: Final = 0.02
_BOOT_TIME_MOVES_S: Final = 2.0


@dataclass(frozen=True)
class MarkedNode:
    """The processes of one node that are alive on this machine; `home` is the $ALPACA_JOBS_HOME that started it."""

    nonce: str
    run_id: str
    attempt: int
    region: str
    home: str
    pids: tuple[int, ...]


def new_nonce() -> str:
    """Return a mark that no other node on any machine has."""
    return secrets.token_hex(8)


def find_marked(nonce: str, *, rank: int | None = None, mark: str = NODE_MARK) -> list[psutil.Process]:
    """Return the live processes of a node, stopped ones included and zombies (already dead) not; with `rank` those of
    one of its machines; with another `mark` those of a part of a node, such as a command of the user's own.
    """
    processes: dict[int, psutil.Process] = {}
    parents: dict[int, int] = {}
    members: set[int] = set()
    for process, environ in _live_processes():
        try:
            parents[process.pid] = process.ppid()
        except psutil.NoSuchProcess:
            continue
        processes[process.pid] = process
        if environ.get(mark) == nonce and rank in (None, int(environ.get(RANK_MARK, "0"))):
            members.add(process.pid)
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return [processes[pid] for pid in sorted(members)]


def find_nodes() -> list[MarkedNode]:
    """Return every node that has a process on this machine, whoever started it."""
    nodes: dict[str, tuple[dict[str, str], list[int]]] = {}
    for process, environ in _live_processes():
        if NODE_MARK not in environ:
            continue
        nodes.setdefault(environ[NODE_MARK], (environ, []))[1].append(process.pid)
    return [
        MarkedNode(
            nonce=nonce,
            run_id=environ.get(RUN_MARK, ""),
            attempt=int(environ.get(ATTEMPT_MARK, "0")),
            region=environ.get(REGION_MARK, ""),
            home=environ.get(HOME_VARIABLE, ""),
            pids=tuple(sorted(pids)),
        )
        for nonce, (environ, pids) in sorted(nodes.items())
    ]


def kill_marked(nonce: str, *, rank: int | None = None, timeout_s: float = 30.0, mark: str = NODE_MARK) -> int:
    """SIGKILL every process of a node (with `rank`: of one of its machines; with `mark`: of a part of it) until none is
    left; nothing else is touched.

    psutil compares a process's start time before it signals, so a pid that was given to somebody else is safe. Killing
    starts again after every look because a process may fork between the look and the kill.

    Returns:
        How many processes were killed.

    Raises:
        ClusterError: some are left after `timeout_s` (stuck in the kernel, or not ours to kill).
    """
    if not nonce:
        raise ValueError("an empty nonce names no node")
    doomed: dict[tuple[int, float], psutil.Process] = {}
    give_up_at = time.monotonic() + timeout_s
    while True:
        for process in find_marked(nonce, rank=rank, mark=mark):
            with suppress(psutil.NoSuchProcess):
                doomed[(process.pid, process.create_time())] = process
        left = [process for process in doomed.values() if _is_live(process)]
        if not left:
            return len(doomed)
        if time.monotonic() > give_up_at:
            pids = ", ".join(str(process.pid) for process in left)
            raise ClusterError(
                f"processes {pids} of node {nonce} are still there {timeout_s:.0f} s after SIGKILL. They belong to "
                "another user or hang in the kernel; end them by hand before resuming the run."
            )
        for process in left:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                process.kill()
        time.sleep(_LOOK_AGAIN_S)  # psutil's own wait would reap children behind their Popen's back


def is_alive(pid: int, created_at_s: float) -> bool:
    """Whether the very process (pid and start time) lives; a zombie that nobody has reaped does not.

    A start time is told as boot time plus ticks, and the boot time moves by a second when a machine sets its clock.
    """
    try:
        process = psutil.Process(pid)
        is_same = abs(process.create_time() - created_at_s) <= _BOOT_TIME_MOVES_S
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_live(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _live_processes() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process, process.environ()
        except psutil.NoSuchProcess:  # gone meanwhile
            continue
        except psutil.AccessDenied:  # another user's
            yield process, {}
