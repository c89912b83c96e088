"""Warnings of a training worker on their way into the run's log.

Ray keeps what a worker says in a folder that goes with the attempt. Nobody would read there of rows that were cut, of
tensors without a place in the model, of attention that runs the slow way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

_OURS: Final = ("alpaca_jobs", "checkpoints", "cluster")


class WarningTeller(logging.Handler):
    """Tells each warning as a fact of kind `log`; used by rank 0, since the others have nothing else to say."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record, traceback included."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        self._tell({"kind": "log", "level": record.levelno, "logger": record.name, "message": message})


def tell_warnings(tell: Callable[[dict[str, Any]], None]) -> None:
    """From now on, tell every warning of this project's own code in this process."""
    teller = WarningTeller(tell)
    for name in _OURS:
        logging.getLogger(name).addHandler(teller)


def log_told(fact: dict[str, Any]) -> None:
    """On the node: log what a worker has told, as if it had been said here."""
    logging.getLogger(fact["logger"]).log(fact["level"], "%s", fact["message"])
