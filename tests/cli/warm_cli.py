"""Commands in processes of their own that need not import what the command line imports: forked from one that did.

    python warm_cli.py SOCKET

Starting Python with pydantic and the rest takes most of the time of a short command. A request is one message on the
socket: JSON of {"argv", "cwd", "environ"}, with the command's stdout and stderr attached; the answer is its exit code.
Every command runs quick_runs.py's `main` in a session of its own. Ctrl-C while Python starts and imports is tried on
real starts (QuickCli.start).
"""

from __future__ import annotations

import atexit
import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import sys
import traceback
from typing import NoReturn

import quick_runs

MOST_BYTES = 2**20


def import_what_commands_import() -> None:
    """What the first lines of `launch`, `resume`, `status` and the like load; nothing of it starts threads."""
    import cli

    for module in pkgutil.iter_modules(cli.__path__, "cli."):
        if module.name != "cli.__main__":
            importlib.import_module(module.name)
    for name in (
        "alpaca_jobs.spec_io", "alpaca_jobs.examples", "cluster.launch.drill", "cluster.launch.launching",
        "cluster.launch.planner", "cluster.launch.receipt", "cluster.launch.estimating", "cluster.runs.run_view",
        "cluster.runs.run_copy", "cluster.runs.report", "cluster.runs.session", "checkpoints.pruning",
    ):  # fmt: skip
        importlib.import_module(name)


def play(request: dict[str, object], out: int, err: int) -> NoReturn:
    """Become the command, and end with its exit code."""
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 64)
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), encoding="utf-8")
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb"), encoding="utf-8", line_buffering=True)
        os.chdir(str(request["cwd"]))
        os.environ.clear()
        os.environ.update(request["environ"])  # type: ignore[call-overload]
        sys.argv = list(request["argv"])  # type: ignore[call-overload]
        quick_runs.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as Python itself ends
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve_one(connection: socket.socket) -> None:
    """Fork the command, wait for it, and say how it ended."""
    message, (out, err), _, _ = socket.recv_fds(connection, MOST_BYTES, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        play(json.loads(message), out, err)
    os.close(out)
    os.close(err)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    connection.sendall(json.dumps(code).encode())


def main() -> None:
    import_what_commands_import()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a command is the process forked for it
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                serve_one(connection)
                os._exit(0)
            connection.close()


if __name__ == "__main__":
    main()
