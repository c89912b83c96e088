"""Every way a store can fail, in our words: a real file system, and a real HTTP server that answers as told."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from checkpoints.errors import (
    CheckpointError,
    ObjectMissing,
    StoreError,
    StoreFull,
    StorePermission,
    StoreUnreachable,
)
from checkpoints.store import Retries, Store
from checkpoints.store_errors import redact, translate

_NOBODY = 65534


class _Scripted(BaseHTTPRequestHandler):
    """Answers each request with the next of `answers`: (status, S3 error code) or "hang up"; the last one repeats."""

    protocol_version = "HTTP/1.1"
    answers: list[Any] = []  # noqa: RUF012 - set per test by the fixture, which makes a subclass
    requests = 0
    release = threading.Event()

    def _answer(self) -> None:
        cls = type(self)
        answer = cls.answers[min(cls.requests, len(cls.answers) - 1)]
        cls.requests += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if answer == "hang":
            cls.release.wait(20)
            return
        if answer == "hang up":
            self.close_connection = True
            self.connection.close()
            return
        status, code = answer
        body = f"<Error><Code>{code}</Code><Message>said {code}</Message></Error>".encode() if status >= 400 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def scripted() -> Iterator[Any]:
    """`scripted(answers)` -> (an S3 store that gets these answers, the handler class)."""
    servers: list[ThreadingHTTPServer] = []

    def make(*answers: Any, **more: Any) -> tuple[Store, type[_Scripted]]:
        handler = type("Handler", (_Scripted,), {"answers": list(answers), "requests": 0})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        options = {
            "endpoint_url": f"http://127.0.0.1:{server.server_address[1]}",
            "key": "AKIAABCDEFGHIJKLMNOP",
            "secret": "very-secret",
            **more,
        }
        retries = Retries(tries=3, sleep=lambda seconds: None)
        return Store.open("s3://bucket/run", storage_options=options, retries=retries), handler

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "kind", "tries"),
    [
        ((403, "AccessDenied"), StorePermission, 1),
        ((403, "InvalidAccessKeyId"), StorePermission, 1),
        ((500, "InternalError"), StoreUnreachable, 3),
        ((503, "SlowDown"), StoreUnreachable, 3),
        ((429, "TooManyRequests"), StoreUnreachable, 3),
        ((507, "InsufficientStorage"), StoreFull, 1),
        ((404, "NoSuchBucket"), StoreError, 1),
        ((400, "InvalidArgument"), StoreError, 1),
        ("hang up", StoreUnreachable, 3),
    ],
)
def test_an_answer_becomes_the_most_specific_error_and_only_transient_ones_are_retried(
    scripted: Any, answer: Any, kind: type[CheckpointError], tries: int
) -> None:
    store, handler = scripted(answer)
    with pytest.raises(StoreError, match="s3://bucket/run") as caught:
        store.put("shard", b"data")
    assert type(caught.value) is kind
    # aiohttp sends a PUT once more by itself when a kept connection breaks: one reason why put_once reads back.
    assert tries <= handler.requests <= (2 * tries if answer == "hang up" else tries)
    assert caught.value.__cause__ is not None
    assert "very-secret" not in str(caught.value)
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize(
    ("act", "rights"),
    [
        (lambda store: store.get("x"), r"needs to read below s3://bucket/run\. Check the credentials in use"),
        (lambda store: store.size("x"), "needs to read below"),
        (lambda store: store.list("x"), "needs to list and read below"),
        (lambda store: store.put("x", b""), "needs to list, read, write and delete below"),
        (lambda store: store.delete(["x"]), "needs to list, read, write and delete below"),
        (
            lambda store: store.put_once("x", {}),
            r"refused \(putting once.* needs to list, read, write and delete below",
        ),
        (lambda store: store.probe_put_once(), r"refused \(putting once.* needs to list, read, write and delete below"),
    ],
)
def test_a_refusal_names_the_right_that_the_refused_verb_takes(scripted: Any, act: Any, rights: str) -> None:
    store, _ = scripted((403, "AccessDenied"))
    with pytest.raises(StorePermission, match=rights):
        act(store)


def test_a_store_that_recovers_in_time_is_not_an_error(scripted: Any) -> None:
    store, handler = scripted((503, "SlowDown"), "hang up", (200, ""))
    store.put("shard", b"data")
    assert handler.requests == 3


def test_a_missing_bucket_says_so(scripted: Any) -> None:
    store, _ = scripted((404, "NoSuchBucket"))
    with pytest.raises(StoreError, match=r"there is no such bucket\. Create it, or correct the store's URL"):
        store.list()


def test_a_store_that_hangs_is_given_up_in_bounded_time(scripted: Any) -> None:
    store, handler = scripted("hang", config_kwargs={"read_timeout": 0.2})
    started = time.monotonic()
    with pytest.raises(StoreUnreachable):
        store.get("shard")
    assert time.monotonic() - started < 15
    assert handler.requests == 3
    handler.release.set()


def test_a_conflict_while_putting_once_is_tried_again(scripted: Any) -> None:
    store, handler = scripted((409, "ConditionalRequestConflict"), (404, "NoSuchKey"), (200, ""))
    store.put_once("claim.json", {})
    assert handler.requests == 3  # refused for now, nothing there, then put


def test_nobody_listening_is_unreachable(unused_port: int) -> None:
    options = {"endpoint_url": f"http://127.0.0.1:{unused_port}", "key": "k", "secret": "s"}
    store = Store.open("s3://bucket", storage_options=options, retries=Retries(tries=2, sleep=lambda seconds: None))
    with pytest.raises(StoreUnreachable, match="could not be reached") as caught:
        store.get("x")
    assert caught.value.retryable


@pytest.fixture
def unused_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return int(server.server_address[1])


def test_no_credentials_is_a_permission_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = Store.open("s3://bucket", storage_options={"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(StorePermission, match=r"no credentials on this machine for it .* Sign in: aws configure"):
        store.list()


def test_a_file_that_hits_the_limit_is_a_full_store_and_leaves_no_half(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    store.put("kept", b"1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StoreFull, match="Free space, or give the run another store"):
            store.put("large", bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["kept"]


@contextmanager
def nobody_special() -> Iterator[None]:
    """Not root, who may write anywhere."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(me)


def test_a_folder_of_somebody_else_is_a_permission_problem() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        (Path(folder) / "store").mkdir(mode=0o555)
        with nobody_special(), pytest.raises(StorePermission, match=r"\. Check the folder's owner and mode\.$"):
            Store.open(f"{folder}/store").put("x", b"")


def test_a_store_below_a_file_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no folder")
    store = Store.open(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="a file stands where a folder is wanted"):
        store.put("x", b"")
    assert store.size("x") is None
    assert store.list() == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StoreFull),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), StoreFull),
        (OSError(errno.EROFS, "Read-only file system"), StorePermission),
        (PermissionError(errno.EACCES, "Permission denied"), StorePermission),
        (TimeoutError("timed out"), StoreUnreachable),
        (ConnectionRefusedError("refused"), StoreUnreachable),
        (FileNotFoundError("gone"), StoreError),
        (OSError(errno.EIO, "Input/output error"), StoreError),
        (RuntimeError("what?"), StoreError),
    ],
)
def test_errors_of_the_system_are_translated(error: Exception, kind: type[CheckpointError]) -> None:
    problem = translate(error, uri="file:///runs", key="a/b", doing="putting")
    assert type(problem) is kind
    assert "file:///runs" in str(problem)
    assert "putting" in str(problem)


def test_a_file_system_that_is_read_only_is_no_matter_of_credentials() -> None:
    problem = translate(OSError(errno.EROFS, "Read-only file system"), uri="file:///runs", key="a/b", doing="putting")
    assert str(problem).startswith("file:///runs/a/b: its file system is read-only (putting; ")
    assert "credentials" not in str(problem)
    assert "name another place" in str(problem)


def test_what_is_not_there_is_missing_to_a_reader_and_a_wrong_place_to_a_writer() -> None:
    gone = FileNotFoundError("gone")
    read = translate(gone, uri="file:///proc/no", key="a/b", doing="reading")
    assert type(read) is ObjectMissing
    assert str(read) == "file:///proc/no/a/b does not exist (reading)."
    written = translate(gone, uri="file:///proc/no", key="a/b", doing="putting once")
    assert "Make it, or correct the store's URL" in str(written)


def test_our_own_errors_stay_what_they_are() -> None:
    error = StoreFull("full")
    assert translate(error, uri="", key="", doing="") is error


@pytest.mark.parametrize(
    "text",
    [
        "key AKIAABCDEFGHIJKLMNOP is unknown",
        "GET https://user:hunter2@host/x",
        "https://host/x?X-Amz-Signature=hunter2&y=1",
        "https://x.blob.core.windows.net/c/b?sv=2024&sig=hunter2",
        "AccountKey=hunter2;EndpointSuffix=core.windows.net",
        "Authorization: Bearer hunter2",
    ],
)
def test_what_looks_like_a_secret_is_blotted_out(text: str) -> None:
    assert "***" in redact(text)
    assert "hunter2" not in redact(text)
    assert "AKIA" not in redact(text)
