"""The `alpaca-jobs` script: loads the command line and runs it; Ctrl-C before it is loaded is no traceback either."""

from __future__ import annotations

import io
import os
import sys


def run() -> None:
    """Run the command that the arguments name; exits with its code."""
    try:
        from cli.exits import settle
        from cli.main import app

        _open_streams()
        try:
            app()
        except SystemExit as stop:
            sys.exit(settle(stop.code if isinstance(stop.code, int) else int(stop.code is not None)))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:
        if isinstance(exc.__cause__, KeyboardInterrupt):  # what Python 3.11 makes of one that comes within an import
            sys.exit(130)
        raise


def _open_streams() -> None:
    """Both streams take any text: one that was closed (`>&-`) drops it, and what an encoding lacks is spelled out."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open as long as we run
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
