"""A network of the box's own: a loopback and a bridge that its machines are plugged into, and no way out.

Another box on this computer does not meet it, and nobody outside reaches it. Every machine has a network namespace too
(machines.py): SkyPilot's Ray wants the same port on each.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

GATEWAY = "10.0.0.1"
"""The user's own address, where the pretend AWS listens; machines have others of 10.0.0.0/8."""
METADATA = "169.254.169.254"
"""Where every machine finds its metadata service, as on AWS."""
BRIDGE = "box0"
_MAC = "02:00:00:00:00:01"  # given: else it is that of some machine, and when that one goes, the others lose their way
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
        for command in (
            "link set lo up", f"link add {BRIDGE} address {_MAC} type bridge", f"address add {GATEWAY}/8 dev {BRIDGE}",
            f"address add {METADATA}/32 dev {BRIDGE}", f"link set {BRIDGE} up",
        ):  # fmt: skip
            subprocess.run(["ip", *command.split()], check=True)
        yield
    finally:
        if libc.setns(before, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(before)
