"""Runs a server in a process group of its own and takes the whole group down when told to, or when its parent is gone.

    python -m cluster.node.served_guard --parent-pid PID --log FILE -- vllm serve ...

A node that is killed cannot end what it started, and a server with a GPU must not outlive it. The exit code is the
server's own (128 and the signal where one ended it).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final

POLL_S: Final = 0.2
GRACE_S: Final = 10.0
"""Between asking the server to end and killing its group."""


def main(argv: Sequence[str] | None = None) -> int:
    """Start the server and wait for its end, ours, or our parent's."""
    parser = argparse.ArgumentParser(prog="python -m cluster.node.served_guard", description=__doc__)
    parser.add_argument("--parent-pid", required=True, type=int)
    parser.add_argument("--log", required=True, type=Path, help="what the server prints is written here")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(argv)
    is_ending = False

    def end(signum: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        is_ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with given.log.open("wb") as log:
        try:
            server = subprocess.Popen(
                given.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as exc:
            log.write(f"{given.command[0]} cannot be run here: {exc.strerror}\n".encode())
            return 127
    while server.poll() is None and not is_ending and os.getppid() == given.parent_pid:
        time.sleep(POLL_S)
    code = _end_group(server)
    return code if code >= 0 else 128 - code


def _end_group(server: subprocess.Popen[bytes]) -> int:
    """End everything in the server's group; what it forked into its group outlives it otherwise."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
