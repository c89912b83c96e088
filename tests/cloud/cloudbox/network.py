"""A network of the box's own: only a loopback, which no other program of this machine is on.

The Ray of SkyPilot's machines has a fixed port and listens on whatever address the machine has: in here that is
127.0.0.1, another box does not meet it, and nobody outside reaches it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000


@contextmanager
def own_network() -> Iterator[None]:
    """Move the calling thread, and whatever it starts from now on, to a network of its own; moves it back at the end.

    Threads that run already stay where they are, so what talks to the box has to do so in the calling thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield
    finally:
        if libc.setns(before, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)
