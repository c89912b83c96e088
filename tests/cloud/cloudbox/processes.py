"""Waiting for things, files that change in one step, free ports, and ending every process of a box."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil


def replace_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or what was there before."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def wait_for(look: Callable[[], Any], what: str, *, timeout_s: float, every_s: float = 2.0) -> Any:
    """Look until there is something to see; returns it.

    Raises:
        TimeoutError: it did not come.
    """
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if found := look():
            return found
        time.sleep(every_s)
    raise TimeoutError(f"no {what} within {timeout_s:.0f} s")


def kill_all(name: str, value: str) -> None:
    """SIGKILL every process with a variable in its environment, and their descendants, until none is left.

    SkyPilot's executors write their title over their environment; only their parent tells whose they are.
    """
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        marked = [process for process in psutil.process_iter() if _has(process, name, value)]
        left = list({*marked, *(child for process in marked for child in _descendants(process))})
        if not left:
            return
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    raise TimeoutError(f"processes of {value} are left: {left}")


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _has(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def free_sky_port() -> int:
    """A port for SkyPilot's API server whose request queue's port, which follows from it, is free as well.

    Source: sky/server/requests/queues/mp_queue.py of 0.14.1.
    """
    for port in range(46_600, 46_900):
        queue = 50_000 + (11 + port - 46_580) % 10_000
        if _is_free(port) and _is_free(queue):
            return port
    raise RuntimeError("no free pair of ports for SkyPilot's API server and its queue")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
        return True
