"""Stores of every kind, and a driver that breaks on order."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from checkpoints.attempts import AttemptLog
from checkpoints.keys import TRAIN_ONLY
from checkpoints.store import Retries, Store
from checkpoints.store_driver import Driver

sys.path[:0] = [str(Path(__file__).parent / folder) for folder in ("s3_servers", "programs")]  # tests hold no packages

if TYPE_CHECKING:
    from s3_server import S3Server

NO_WAITS = Retries(tries=4, sleep=lambda seconds: None)
_NUMBERS = itertools.count()


def conditional_puts_one_at_a_time(app: Any) -> Any:
    """moto looks for the object and writes it in two steps, from many threads; S3 promises that it is one step."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return app(environ, start_response)
        with lock:
            return app(environ, start_response)

    return serve


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, str]]:
    """storage_options of a moto server in this process, with the bucket `bucket`."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    server._server.app = conditional_puts_one_at_a_time(server._server.app)
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test-key", "secret": "test-secret"}
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=options["key"],
        aws_secret_access_key=options["secret"],
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    client.close()
    yield options
    server.stop()


@pytest.fixture(scope="session")
def radosgw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Ceph's S3 gateway, with the bucket `bucket`; up in a few seconds."""
    from radosgw import radosgw

    with radosgw(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if there is one: SIGKILL does not ask the disk, and its fsync takes most of the time."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def make_store(quick_folder: Path, request: pytest.FixtureRequest) -> Callable[[str], Store]:
    """`make_store("file" | "memory" | "s3" | "radosgw")`: a fresh, empty store that never sleeps between tries."""

    def make(kind: str) -> Store:
        number = next(_NUMBERS)
        if kind == "file":
            return Store.open(str(quick_folder / f"store-{number}"), retries=NO_WAITS)
        if kind == "memory":
            return Store.open(f"memory://tests-{number}", retries=NO_WAITS)
        if kind == "radosgw":
            options = request.getfixturevalue("radosgw_server").options
        else:
            options = request.getfixturevalue("s3_options")
        return Store.open(f"s3://bucket/tests-{number}", storage_options=options, retries=NO_WAITS)

    return make


@pytest.fixture(
    params=[
        "file",
        "memory",
        pytest.param("s3", marks=pytest.mark.process),
        pytest.param("radosgw", marks=pytest.mark.slow),
    ]
)
def store(request: pytest.FixtureRequest, make_store: Callable[[str], Store]) -> Store:
    """An empty store of each kind: one contract, many stores."""
    return make_store(request.param)


@pytest.fixture
def memory_store(make_store: Callable[[str], Store]) -> Store:
    return make_store("memory")


@pytest.fixture
def file_store(make_store: Callable[[str], Store]) -> Store:
    return make_store("file")


@pytest.fixture
def log(memory_store: Store) -> AttemptLog:
    return AttemptLog(memory_store, TRAIN_ONLY)


class Died(BaseException):
    """The process is gone: nothing catches this, and nothing works after it."""


@dataclass
class FaultyDriver:
    """Passes everything on, and breaks the `at`-th change (write, create, delete; from 1) in the given way.

    how: "before" / "after" / "torn": the process dies before the change, after it, or in the middle of it (half of a
    non-atomic write arrives, half of the keys are deleted; a put of this package is never torn on a store that keeps
    its promise, so a torn create does nothing). "refused once" / "answer lost": a transient failure, before or after
    the change, once. "answer lost always": every answer from there on is lost. "fails": it is refused for good. "hangs
    before" / "hangs after": it stands still, before the change or after it, until `release` is set.

    every: count what only looks (read, size, list, abort) as well.
    """

    inner: Driver
    at: int = 0
    how: str = "before"
    every: bool = False
    changes: int = 0
    dead: bool = False
    hung: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def uri(self) -> str:
        return self.inner.uri

    def write(self, key: str, data: bytes | memoryview) -> None:
        half = memoryview(data)[: len(data) // 2]
        self._change(lambda: self.inner.write(key, data), lambda: self.inner.write(key, half))

    def create(self, key: str, data: bytes) -> bool:
        return bool(self._change(lambda: self.inner.create(key, data), lambda: None))

    def delete(self, keys: Sequence[str]) -> None:
        half = keys[: len(keys) // 2]
        self._change(lambda: self.inner.delete(keys), lambda: self.inner.delete(half))

    def read(self, key: str, start: int, length: int | None) -> bytes:
        return self._look(lambda: self.inner.read(key, start, length))

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        return self._look(lambda: self.inner.read_into(key, start, view))

    def size(self, key: str) -> int | None:
        return self._look(lambda: self.inner.size(key))

    def list(self, prefix: str) -> list[str]:
        return self._look(lambda: self.inner.list(prefix))

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool]) -> int:
        return self._look(lambda: self.inner.abort_unfinished(prefix, wanted))

    def _look(self, act: Callable[[], Any]) -> Any:
        if self.every:
            return self._change(act, lambda: None)
        self._check_alive()
        return act()

    def _change(self, act: Callable[[], Any], act_half: Callable[[], Any]) -> Any:
        self._check_alive()
        with self.lock:
            self.changes += 1
            hit = self.changes == self.at or (self.how == "answer lost always" and 0 < self.at <= self.changes)
        if not hit:
            return act()
        if self.how.startswith("hangs"):
            done = act() if self.how == "hangs after" else None
            self.hung.set()
            assert self.release.wait(60), "nobody released it"
            return done if self.how == "hangs after" else act()
        if self.how == "fails":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.how in ("after", "answer lost", "answer lost always"):
            act()
        if self.how == "torn":
            act_half()
        if self.how in ("before", "after", "torn"):
            self.dead = True
            raise Died
        raise ConnectionResetError("the connection broke")

    def _check_alive(self) -> None:
        if self.dead:
            raise Died


@pytest.fixture
def faults() -> SimpleNamespace:
    """`faults.break_store(store, at=3, how="torn")` -> (the same store behind a FaultyDriver, that driver)."""

    def break_store(store: Store, *, at: int, how: str, every: bool = False) -> tuple[Store, FaultyDriver]:
        driver = FaultyDriver(store._driver, at=at, how=how, every=every)
        return Store(driver, prefix=store._prefix, retries=NO_WAITS), driver

    return SimpleNamespace(break_store=break_store, Died=Died, FaultyDriver=FaultyDriver)
