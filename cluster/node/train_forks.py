"""What a template runs: import, then fork a rank for everyone who connects. Started by train_template.py.

    python -m cluster.node.train_forks SOCKET_NUMBER        the job, as one line of JSON, on standard input

It ends when its standard input does, that is, with the node that started it; a rank ends when its connection does, that
is, with the Ray actor that it works for.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from cluster.node.train_worker import TrainWorker

logger = logging.getLogger(__name__)


def serve_template(listener: socket.socket) -> None:
    """Import what the job's ranks need, then fork one for each connection until standard input ends."""
    job = json.loads(sys.stdin.readline())
    try:
        TrainWorker(0).prepare(job)
    except Exception:  # each rank runs into it again when it is told to prepare, and says it to the driver
        logger.exception("the imports of training failed")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ranks that end leave nothing behind
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:  # nothing else is ever written
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            serve_rank(connection)
        connection.close()


def serve_rank(connection: socket.socket) -> NoReturn:
    """Be one rank: do what is asked, each call in a thread of its own, until nobody is there to ask."""
    reader, writer, lock = connection.makefile("rb"), connection.makefile("wb"), threading.Lock()

    def answer(number: int, method: str, arguments: Sequence[Any]) -> None:
        said = _answer(worker, method, arguments)
        with lock:
            pickle.dump(number, writer)
            writer.write(said)
            writer.flush()

    with suppress(EOFError, OSError):
        worker = TrainWorker(pickle.load(reader))
        while True:
            threading.Thread(target=answer, args=pickle.load(reader), daemon=True).start()
    os._exit(0)


def _answer(worker: TrainWorker, method: str, arguments: Sequence[Any]) -> bytes:
    """(whether it failed, the value or the error), pickled. An error is what travels, too, if it has to be put in
    other words, and says where in the rank it came from.
    """
    try:
        return pickle.dumps((False, getattr(worker, method)(*arguments)))
    except BaseException as exc:  # noqa: BLE001  # the driver waits for an answer, whatever it is
        note = f"In the rank's own process:\n{traceback.format_exc()}"
        with suppress(Exception):
            exc.add_note(note)
            said = pickle.dumps((True, exc))
            if isinstance(pickle.loads(said)[1], Exception):
                return said
        other = RuntimeError(f"{type(exc).__name__}: {exc}")
        other.add_note(note)
        return pickle.dumps((True, other))


if __name__ == "__main__":
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve_template(socket.socket(fileno=int(sys.argv[1])))
