"""The offline demo teacher: a small OpenAI-compatible server on this machine that composes tasks by rule.

    python -m alpaca_jobs.generation.offline_teacher --port 0 --ready-file F     # writes its URL to F when it answers

It exists so that the whole path (HTTP, retries, parsing, filters, dedupe) works without a key. It answers by the hash
of the request, refuses some requests the first time (429, 500), and marks everything as demo data: model
"offline-demo", a field `"demo": true`, a header `x-demo-data: true`. It ends with the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from alpaca_jobs.generation.offline_batches import OfflineBatches
from alpaca_jobs.generation.offline_composer import compose_answer
from alpaca_jobs.generation.offline_replies import (
    count_tokens,
    cut_answer,
    find_problem,
    read_prompt,
    render_answer,
    render_error,
)
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL

S = TypeVar("S", bound=BaseServer)

logger = logging.getLogger(__name__)

CONTEXT_TOKENS = 4097
"""Prompt and completion together; small on purpose, so that the 80 % rule is at work. Source: text-davinci-003."""
RETRY_AFTER_S = 0.05
STATED_LIMIT = {  # so high that it never holds: what is refused here is refused by dice, not for being asked too fast
    "x-ratelimit-limit-requests": "60000",
    "x-ratelimit-remaining-requests": "59999",
    "x-ratelimit-reset-requests": "1ms",
}
_BODY_LIMIT = 200 * 2**20  # of a batch's file. Source: OpenAI, "Batch API" guide


class OfflineTeacher(ThreadingHTTPServer):
    """The server. Requests run in threads of their own; the only state is which refused requests were seen before."""

    daemon_threads = True
    allow_reuse_address = False
    stated_limit: Mapping[str, str] = STATED_LIMIT
    request_queue_size = 128  # the default of 5 makes a burst of connections wait a second for a second try

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency_s: float = 0.0,
        log: Path | None = None,
        refuses_some: bool = True,
        context_tokens: int = CONTEXT_TOKENS,
        state: Path | None = None,
        batch_s: float = 0.0,
    ) -> None:
        """Listen at once; answer once `serve_forever` runs.

        Args:
            host, port: where to listen; port 0 takes a free one.
            latency_s: how long each answer is held back.
            log: file that gets one JSON line per request: time, its digest, hash of its prompt, status, usage.
            refuses_some: whether some requests get a 429 or a 500 when first asked.
            context_tokens: prompt and completion together.
            state: folder of the Batch API's files and batches; None leaves that API out.
            batch_s: how long a batch takes.
        """
        super().__init__((host, port), _Handler)
        self.latency_s = latency_s
        self.log_path = log
        self.refuses_some = refuses_some
        self.context_tokens = context_tokens
        self.batches = None if state is None else OfflineBatches(state, self._answer_line, batch_s=batch_s)
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    @property
    def base_url(self) -> str:
        """Address for an OpenAI client."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Return status, JSON and extra headers for one request body."""
        problem = find_problem(body, is_chat=is_chat)
        if problem:
            return problem[0], render_error(*problem[1:]), {}
        canonical = json.dumps(body, sort_keys=True).encode()
        digest = hashlib.sha256(canonical).digest()
        prompt = read_prompt(body, is_chat=is_chat)
        max_tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        wanted = count_tokens(prompt) + max_tokens
        if wanted > self.context_tokens:
            words = (
                f"This model's maximum context length is {self.context_tokens} tokens, however you requested {wanted}"
            )
            return (
                400,
                render_error(f"{words}. Please reduce your prompt; or completion length.", "context_length_exceeded"),
                {},
            )
        if self.refuses_some and (refusal := self._refuse_once(digest)):
            return refusal
        text, finish_reason = compose_answer(prompt, digest)
        text, finish_reason = cut_answer(text, finish_reason, body.get("stop"), max_tokens)
        return 200, render_answer(digest, prompt, text, finish_reason, is_chat=is_chat), {}

    def _answer_line(self, body: dict[str, Any], is_chat: bool) -> tuple[int, dict[str, Any]]:
        """Answer one request of a batch."""
        status, reply, _ = self.answer(body, is_chat=is_chat)
        self.write_log(body, status, reply, is_chat=is_chat)
        return status, reply

    def _refuse_once(self, digest: bytes) -> tuple[int, dict[str, Any], dict[str, str]] | None:
        key, kind = digest.hex(), digest[0] % 16
        with self._lock:
            if kind > 1 or key in self._refused:
                return None
            self._refused.add(key)
        if kind == 0:
            return (
                429,
                render_error("Rate limit reached (demo).", "rate_limit_exceeded"),
                {"retry-after": str(RETRY_AFTER_S)},
            )
        return 500, render_error("The server had an error while processing your request (demo).", "server_error"), {}

    def write_log(self, body: dict[str, Any], status: int, reply: dict[str, Any], *, is_chat: bool) -> None:
        """Append one line about a request to the log file, if there is one."""
        if self.log_path is None:
            return
        entry = {
            "t": time.time(),
            "digest": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest(),
            "prompt": hashlib.sha256(read_prompt(body, is_chat=is_chat).encode()).hexdigest(),
            "status": status,
            "usage": reply.get("usage"),
        }
        with self._lock, self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; with it on, each answer waits 40 ms
    server: OfflineTeacher

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that was killed resets its idle connections, too
            super().handle()

    def do_GET(self) -> None:
        if self._answer_batches("GET", b""):
            return
        if self.path.rstrip("/") == "/v1/models":
            model = {"id": OFFLINE_MODEL, "object": "model", "owned_by": "alpaca-jobs", "demo": True}
            self._send(200, {"object": "list", "data": [model], "demo": True}, {})
        else:
            self._send(404, render_error(f"nothing at {self.path}", "not_found"), {})

    def do_POST(self) -> None:
        raw = self.rfile.read(min(int(self.headers.get("content-length") or 0), _BODY_LIMIT))
        if self._answer_batches("POST", raw):
            return None
        is_chat = self.path.rstrip("/") == "/v1/chat/completions"
        if not is_chat and self.path.rstrip("/") != "/v1/completions":
            return self._send(404, render_error(f"nothing at {self.path}", "not_found"), {})
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return self._send(400, render_error("the body is not a JSON object", "invalid_request"), {})
        time.sleep(self.server.latency_s)
        status, reply, headers = self.server.answer(body, is_chat=is_chat)
        self.server.write_log(body, status, reply, is_chat=is_chat)
        self._send(status, reply, headers)

    def do_DELETE(self) -> None:
        if not self._answer_batches("DELETE", b""):
            self._send(404, render_error(f"nothing at {self.path}", "not_found"), {})

    def _answer_batches(self, method: str, raw: bytes) -> bool:
        """Answer a request to the Batch API; says whether it was one."""
        parts = urlsplit(self.path)
        if self.server.batches is None or not parts.path.startswith(("/v1/files", "/v1/batches")):
            return False
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        found = self.server.batches.handle(method, parts.path, query, raw, self.headers.get("content-type") or "")
        if isinstance(found, bytes):
            self._send_bytes(200, found, {"content-type": "application/octet-stream"})
            return True
        status, reply = found or (404, render_error(f"nothing at {self.path}", "not_found"))
        self._send(status, reply, {})
        return True

    def _send(self, status: int, reply: dict[str, Any], headers: dict[str, str]) -> None:
        self._send_bytes(status, json.dumps(reply).encode(), headers)

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        with contextlib.suppress(ConnectionError):  # the client may be gone: killed, or tired of waiting
            self.send_response(status)
            for name, value in {
                "content-type": "application/json",
                "x-demo-data": "true",
                **self.server.stated_limit,
                **headers,
            }.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


@contextlib.contextmanager
def serve(host: str = "127.0.0.1", port: int = 0, **options: Any) -> Iterator[OfflineTeacher]:
    """Run the server in a thread of this process; options as for OfflineTeacher."""
    with running(OfflineTeacher(host=host, port=port, **options)) as server:
        yield server


@contextlib.contextmanager
def running(server: S) -> Iterator[S]:
    """Run any server in a thread of this process; it is closed afterwards."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), name=type(server).__name__, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def _end_with(parent: Any) -> None:
    """End this process when `parent` has ended; a server that nobody knows of must not stay."""
    import psutil

    while True:
        try:
            if not parent.is_running() or parent.status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        time.sleep(0.5)
    logger.info("the process that started this server is gone; ending")
    os._exit(0)


def main() -> None:
    """Serve until told to stop, or until the parent process is gone."""
    import psutil

    parser = argparse.ArgumentParser(
        description="Demo teacher: an OpenAI-compatible server that composes tasks by rule."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--ready-file", type=Path, help="gets the server's URL once it answers")
    parser.add_argument("--log", type=Path, help="gets one JSON line per request")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds each answer is held back")
    parser.add_argument("--state", type=Path, help="folder of the Batch API's files and batches; none without it")
    parser.add_argument("--no-refusals", action="store_true", help="no 429 and no 500")
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help="end when this process ends")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="offline teacher: %(message)s")  # to stderr
    try:
        parent = psutil.Process(arguments.parent_pid)
    except psutil.NoSuchProcess:
        parser.exit(1, f"offline teacher: the parent process {arguments.parent_pid} is gone already\n")
    options = {"latency_s": arguments.latency, "log": arguments.log, "refuses_some": not arguments.no_refusals}
    options |= {"state": arguments.state, "batch_s": arguments.latency}
    with serve(arguments.host, arguments.port, **options) as server, contextlib.suppress(KeyboardInterrupt):
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        logger.info("answering at %s (demo data)", server.base_url)
        if arguments.ready_file:
            half = arguments.ready_file.with_name(f"{arguments.ready_file.name}.{os.getpid()}.half")
            half.write_text(server.base_url, encoding="utf-8")
            os.replace(half, arguments.ready_file)  # whoever waits for the file never sees half a URL
        threading.Event().wait()


if __name__ == "__main__":
    main()
