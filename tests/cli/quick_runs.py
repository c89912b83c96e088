"""`alpaca-jobs`, except that its nodes are the quick ones of tests/cluster/fake_node.py: no Ray, no torch, no training.

    python quick_runs.py BEHAVIOUR ARGS...     BEHAVIOUR is fake_node.py's JSON

Everything else is real: the plan, the store, the supervisor in its own process, the node in its own. With QUICK_STARTED
in the environment, that file says that Python is up, so that a test can choose its moment from then on.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

FAKE_NODE = Path(__file__).parent.parent / "cluster" / "fake_node.py"


def use_quick_nodes(behaviour: str) -> None:
    """Let launch and resume start quick nodes, in this process."""
    import functools

    import cluster.launch.drill
    import cluster.launch.launching
    from cluster.runs.session import Timing

    timing = Timing(poll_s=0.05, store_poll_s=0.2, lease_s=2.0, claim_s=20.0, notice_s=5.0, store_patience_s=10.0)
    command = (sys.executable, str(FAKE_NODE), behaviour)
    for name in ("start_run", "resume_run"):
        real = getattr(cluster.launch.launching, name)
        quick = functools.partial(real, timing=timing, node_command=command)
        setattr(cluster.launch.launching, name, quick)
        if hasattr(cluster.launch.drill, name):
            setattr(cluster.launch.drill, name, quick)


def main() -> None:
    behaviour = sys.argv.pop(1)
    # Tests that run in the background (nohup, some CI) inherit a SIGINT that is ignored; a terminal's user does not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if "QUICK_STARTED" in os.environ:
            Path(os.environ["QUICK_STARTED"]).touch()
        use_quick_nodes(behaviour)
    except (KeyboardInterrupt, Exception) as exc:  # as the command line does, whose imports these are
        from cli.exits import was_interrupted

        if not was_interrupted(exc):
            raise
        sys.exit(130)
    from cli.entry import run

    run()


if __name__ == "__main__":
    main()
