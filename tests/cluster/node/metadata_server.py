"""A pretend metadata service on 127.0.0.1: paths and what they answer, changed by the test while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from alpaca_jobs.generation.offline_teacher import running


class MetadataServer(ThreadingHTTPServer):
    """Answers GET with `paths[path]` (404 where there is none), and AWS's PUT for a token.

    Attributes:
        wants: headers that a question must carry, or it is answered 400 or, for AWS's token, 401.
        asked: path of every question, in order.
    """

    daemon_threads = True

    def __init__(self, **wants: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: dict[str, str] = {}
        self.wants = {name.replace("_", "-"): value for name, value in wants.items()}
        self.asked: list[str] = []
        self.tokens: list[str] = []
        self.changed = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"


class _Handler(BaseHTTPRequestHandler):
    server: MetadataServer

    def do_PUT(self) -> None:
        """A token, as IMDSv2 gives them; without its lifetime there is none."""
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            self._answer(400, "")
            return
        self.server.tokens.append(f"token-{len(self.server.tokens)}")
        self._answer(200, self.server.tokens[-1])

    def do_GET(self) -> None:
        """A value; held back on request until it changes, as GCP does."""
        split = urlsplit(self.path)
        self.server.asked.append(split.path)
        if any(self.headers.get(name) != value for name, value in self.server.wants.items()):
            self._answer(403, "")
            return
        if self.server.tokens and self.headers.get("X-aws-ec2-metadata-token") != self.server.tokens[-1]:
            self._answer(401, "")
            return
        query = parse_qs(split.query)
        if query.get("wait_for_change") == ["true"]:
            until = time.monotonic() + float(query["timeout_sec"][0])
            while self._etag(split.path) == query["last_etag"][0] and time.monotonic() < until:
                self.server.changed.wait(0.02)
        if (text := self.server.paths.get(split.path)) is None:
            self._answer(404, "")
        else:
            self._answer(200, text, etag=self._etag(split.path))

    def _etag(self, path: str) -> str:
        return f"{abs(hash(self.server.paths.get(path))):x}"

    def _answer(self, status: int, text: str, *, etag: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def metadata_server(**wants: str) -> Iterator[MetadataServer]:
    """One server for as long as the block lasts."""
    with running(MetadataServer(**wants)) as server:
        yield server
