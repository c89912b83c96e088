"""A training worker as Ray runs it where ranks are forked: it passes calls on to its rank, and answers back.

Calls and answers go over the template's socket (train_template.py), pickled; both ends are this node's own processes.
"""

from __future__ import annotations

import importlib
import itertools
import os
import pickle
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cluster.errors import RayFailure
from cluster.node.train_template import SOCKET

if TYPE_CHECKING:
    from alpaca_jobs.data.rows import Row
    from alpaca_jobs.training.control import TrainResult
    from alpaca_jobs.training.dataset import Dataset
    from cluster.node.train_worker import ExportOrder, WorkerAssignment


class ForkedTrainWorker:
    """One rank; its methods are TrainWorker's."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._is_gone = False
        self._connection = socket.socket(socket.AF_UNIX)
        with suppress(OSError):  # the template is gone: the first call says so
            self._connection.connect(os.environ[SOCKET])
            self._connection.sendall(pickle.dumps(rank))
        self._reader, self._writer = self._connection.makefile("rb"), self._connection.makefile("wb")
        threading.Thread(target=self._listen, name="rank", daemon=True).start()

    def prepare(self, job: dict[str, Any]) -> float:
        """Wait until the rank has imported what it needs; returns the seconds that took."""
        began = time.monotonic()
        importlib.import_module("alpaca_jobs.training.dataset")  # what its answers are made of, meanwhile
        self._ask("prepare", job)
        return time.monotonic() - began

    def open_rendezvous(self, address: str) -> str:
        """As TrainWorker."""
        where: str = self._ask("open_rendezvous", address)
        return where

    def tokenize(self, job: dict[str, Any], rows: Sequence[Row] | str, folder: str) -> Dataset:
        """As TrainWorker."""
        dataset: Dataset = self._ask("tokenize", job, rows, folder)
        return dataset

    def tokenize_again(self, job: dict[str, Any], source: str, folder: str, dataset: Dataset) -> None:
        """As TrainWorker."""
        self._ask("tokenize_again", job, source, folder, dataset)

    def run(self, assignment: WorkerAssignment, dataset: Dataset) -> TrainResult:
        """As TrainWorker."""
        result: TrainResult = self._ask("run", assignment, dataset)
        return result

    def export(self, order: ExportOrder, dataset: Dataset) -> str:
        """As TrainWorker."""
        digest: str = self._ask("export", order, dataset)
        return digest

    def drain(self) -> list[dict[str, Any]]:
        """As TrainWorker."""
        facts: list[dict[str, Any]] = self._ask("drain")
        return facts

    def notice(self, window_s: float) -> None:
        """As TrainWorker."""
        self._ask("notice", window_s)

    def close(self) -> None:
        """End the rank, as the end of this worker's process does."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """One call of the rank, from any thread.

        Raises:
            RayFailure: its process ended. An error raised inside the call is raised as itself.
        """
        answer: Future[Any] = Future()
        with self._lock:
            if self._is_gone:
                raise self._gone()
            number = next(self._numbers)
            call = pickle.dumps((number, method, arguments))
            self._waiting[number] = answer
            with suppress(OSError):  # it is gone; `_listen` sees it as well, and answers for it
                self._writer.write(call)
                self._writer.flush()
        return answer.result()

    def _listen(self) -> None:
        try:
            while True:
                answer = self._waiting.pop(pickle.load(self._reader))
                failed, value = pickle.load(self._reader)
                if failed:
                    answer.set_exception(value)
                else:
                    answer.set_result(value)
        except (EOFError, OSError, pickle.UnpicklingError):  # the end, perhaps in the middle of an answer
            return
        finally:
            with self._lock, suppress(OSError):
                self._is_gone = True
                self._connection.close()
                self._reader.close()
                self._writer.close()  # which may hold words that nobody hears any more
            for answer in self._waiting.values():
                answer.set_exception(self._gone())

    def _gone(self) -> RayFailure:
        return RayFailure(
            f"The process of rank {self._rank} ended, or could not be started. ranks.log in the node's scratch folder "
            "holds what it said last; without a word it was killed, most often because the machine's memory was full."
        )
