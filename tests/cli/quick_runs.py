"""`alpaca-jobs`, except that its nodes are the quick ones of tests/cluster/fake_node.py: no Ray, no torch, no training.

    python quick_runs.py BEHAVIOUR ARGS...     BEHAVIOUR is fake_node.py's JSON

Everything else is real: the plan, the store, the supervisor in its own process, the node in its own.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import cluster.launching
from cli.main import app
from cluster.session import Timing

FAKE_NODE = Path(__file__).parent.parent / "cluster" / "fake_node.py"
TIMING = Timing(poll_s=0.05, store_poll_s=0.2, lease_s=2.0, claim_s=20.0, notice_s=5.0, store_patience_s=10.0)


def use_quick_nodes(behaviour: str) -> None:
    """Let launch and resume start quick nodes, in this process."""
    command = (sys.executable, str(FAKE_NODE), behaviour)
    for name in ("start_run", "resume_run"):
        real = getattr(cluster.launching, name)
        setattr(cluster.launching, name, functools.partial(real, timing=TIMING, node_command=command))


if __name__ == "__main__":
    use_quick_nodes(sys.argv[1])
    app(sys.argv[2:])
