"""What a place that runs nodes can do; the local one is cluster/local/backend.py.

A node is everything that one attempt runs on, however many machines: it starts as a whole and is ended as a whole.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from cluster.exits import Notice
from cluster.phase import Marks
from cluster.plan import LaunchPlan, Placement

# -P: a folder called cluster or torch where the user happens to stand must not be imported instead of ours.
NODE_COMMAND = (sys.executable, "-P", "-m", "cluster.node.main")


@dataclass(frozen=True)
class Handle:
    """Names a node that was launched; good for a later process of the launcher too.

    Attributes:
        nonce: the mark of this node's processes; no other node ever has it.
    """

    run_id: str
    attempt: int
    placement: Placement
    nonce: str


@dataclass(frozen=True)
class NodeStatus:
    """Whether a node's main process lives, and how it ended; None: it ended and nobody of us saw it."""

    is_running: bool
    exit_code: int | None = None


class Backend(Protocol):
    """Where nodes run. Every verb but `launch` may be called again, and on a node that is gone, without harm."""

    def launch(self, plan: LaunchPlan, placement: Placement, attempt: int) -> Handle:
        """Start a node; not idempotent: every call starts one.

        Raises:
            NoCapacity: the place has none now; nothing was started.
            LaunchFailed: it could not be started; nothing is left running.
        """
        ...

    def status(self, handle: Handle) -> NodeStatus:
        """Look at a node."""
        ...

    def logs(self, handle: Handle, *, offset: int = 0) -> bytes:
        """What the node wrote to its standard output and error, from a byte on."""
        ...

    def marks(self, handle: Handle) -> Marks | None:
        """What the node last marked, dead or alive; None where a dead machine's disk cannot be read."""
        ...

    def notice(self, handle: Handle, notice: Notice) -> None:
        """Tell a node to save what it can and leave within the window; returns at once."""
        ...

    def cancel(self, handle: Handle, notice: Notice) -> None:
        """Give notice, wait until the node is gone or its window is over, and end whatever is left."""
        ...

    def kill(self, handle: Handle) -> None:
        """End every process of a node at once, and throw away its disk; its log stays."""
        ...

    def find(self, run_id: str) -> list[Handle]:
        """Nodes of a run that have live processes, by their marks; for a launcher that started after they did."""
        ...
