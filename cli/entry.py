"""The `alpaca-jobs` script: loads the command line and runs it; Ctrl-C before it is loaded is no traceback either."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command that the arguments name; exits with its code."""
    try:
        from cli.main import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)
