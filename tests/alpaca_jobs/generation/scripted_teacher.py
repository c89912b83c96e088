"""A server that says what a test wants it to say, and one request asked of it by the real client. A test helper."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alpaca_jobs.errors import TeacherError
from alpaca_jobs.generation.completer import Completer, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.offline_teacher import running
from alpaca_jobs.generation.rate_limit import RateNews
from alpaca_jobs.spec import TeacherSpec

KEY = "sk-very-secret-0123456789"
REQUEST = TeacherRequest(7, "Continue:", 1000, 0.9, 0.8, ("\n21.",), "d1gest")

Reply = tuple[int, dict[str, str], bytes]
Script = Callable[[int, dict[str, Any]], Reply]
"""(number of the ask, from 0; the request's body) -> status, headers, body."""


class ScriptedTeacher(ThreadingHTTPServer):
    """A server that says whatever a test wants it to say, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms for the acknowledgement of its headers
    server: ScriptedTeacher

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({"path": self.path, **body})
        self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        status, headers, data = self.server.script(len(self.server.asked) - 1, body)
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        return


@contextlib.contextmanager
def _serving(script: Script) -> Iterator[ScriptedTeacher]:
    with running(ScriptedTeacher(script)) as server:
        yield server


def _json(body: Any, status: int = 200, **headers: str) -> Reply:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode()


def _error(status: int, message: str = "no", code: str = "", param: str = "", **headers: str) -> Reply:
    return _json({"error": {"message": message, "code": code, "param": param}}, status, **headers)


def _text(text: Any = " Do it", finish_reason: str | None = "stop", **more: Any) -> Reply:
    return _json({"choices": [{"text": text, "finish_reason": finish_reason}], **more})


def _chat(finish_reason: str = "stop", **message: Any) -> Reply:
    return _json({"choices": [{"message": message, "finish_reason": finish_reason}]})


USAGE = {"usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}}


class OpenGate:
    """Lets everybody through; test_rate_limit.py is about the one that does not."""

    def __init__(self, news: list[RateNews]) -> None:
        self.news = news

    async def enter(self) -> None:
        return

    async def tell(self, news: RateNews) -> None:
        self.news.append(news)


class Asked:
    """What one `complete` led to: the answer or error, the waits between tries, the requests the server saw."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.news: list[RateNews] = []
        self.answer: TeacherAnswer | None = None
        self.error: TeacherError | None = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []


def _ask(script: Script, *, request: TeacherRequest = REQUEST, api_key: str | None = KEY, **spec: Any) -> Asked:
    with _serving(script) as server:
        teacher = TeacherSpec(
            **{"model": "m1", "base_url": server.base_url, "api": "completions", "max_retries": 3, **spec}
        )
        result = asyncio.run(_ask_once(teacher, request, api_key))
        result.asked, result.headers = server.asked, server.headers_seen
    return result


async def _ask_once(teacher: TeacherSpec, request: TeacherRequest, api_key: str | None) -> Asked:
    result = Asked()

    async def sleep(seconds: float) -> None:
        result.waits.append(seconds)  # the clock is turned, not waited for

    completer = Completer(
        teacher, api_key=api_key, gate=OpenGate(result.news), sleep=sleep, jitter=lambda: 0.5,
        clock=lambda: sum(result.waits),
    )  # fmt: skip
    try:
        result.answer = await completer.complete(request)
    except TeacherError as exc:
        result.error = exc
    finally:
        await completer.close()
    if result.error is not None:
        assert KEY not in _everything(result.error), "a key in a message ends up in logs"
    return result


def _everything(exc: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(exc))
