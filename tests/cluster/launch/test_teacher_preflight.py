"""A model that the teacher does not have is said before anything is paid, and a question that fails stops nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from alpaca_jobs.generation.offline_teacher import running
from alpaca_jobs.spec import JobSpec
from cluster.launch.teacher_preflight import teacher_warnings

KEY = "sk-very-secret"


@contextmanager
def models(status: int, *names: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path == "/v1/models" and self.headers["authorization"] == f"Bearer {KEY}"
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}
            body = json.dumps(listed if status == 200 and known else {"error": {"message": f"no, {KEY}"}}).encode()
            self.send_response(status if known else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


def job(**teacher: Any) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "j", "train": {"model": "tiny-llama"}, "compute": {"workers": 1}, "secrets": ["OPENAI_API_KEY"],
         "data": {"teacher": {"model": "gpt-x", **teacher}}}
    )  # fmt: skip


def test_a_model_that_is_listed_is_nothing_to_warn_of_and_one_that_is_not_is_named() -> None:
    environ = {"OPENAI_API_KEY": KEY}
    with models(200, "gpt-x", "gpt-y") as url:
        assert teacher_warnings(job(base_url=url), environ) == []
        (words,) = teacher_warnings(job(base_url=url, model="gpt-z"), environ)
    assert "lists no model gpt-z; it lists gpt-x, gpt-y" in words


@pytest.mark.parametrize("status", [401, 404])
def test_a_question_that_fails_is_a_warning_without_the_key(status: int) -> None:
    with models(status) as url:
        (words,) = teacher_warnings(job(base_url=url), {"OPENAI_API_KEY": KEY})
    assert f"could not be asked from here whether it has gpt-x (HTTP {status})" in words
    assert KEY not in words
    (words,) = teacher_warnings(job(base_url="http://127.0.0.1:9/v1"), {"OPENAI_API_KEY": KEY})
    assert "could not be asked" in words


def test_nobody_is_asked_without_a_key_or_where_the_run_serves_its_own() -> None:
    assert teacher_warnings(job(), {}) == []
    served = {"serve": "open/m", "server": {"command": ["true"]}}
    spec = {"name": "j", "train": {"model": "tiny-llama"}, "compute": {"workers": 1}, "data": {"teacher": served}}
    assert teacher_warnings(JobSpec.model_validate(spec), {}) == []
