"""Teachers and models that fail a real node: one clear end record each, everything paid for kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.generation.offline_teacher import running
from cluster.recovery import StopReason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@contextmanager
def teacher(status: int, body: Callable[[], dict[str, Any]]) -> Iterator[str]:
    """A server on this machine that always answers alike; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            payload = json.dumps(body()).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"


def teacher_spec(url: str) -> dict[str, Any]:
    return {"model": "m", "base_url": url, "api_key_env": None, "max_retries": 1, "timeout_s": 5, "patience_s": 3}


def end_with(bench: Any, url: str, **data: Any) -> dict[str, Any]:
    bench.create(data={"teacher": teacher_spec(url), **data})
    assert bench.wait_exit(bench.start()) is StopReason.USER_ERROR
    end: dict[str, Any] = bench.end_of(1)
    assert (end["exit_code"], end["retryable"]) == (3, False)
    return end


def test_an_unreachable_teacher_ends_the_attempt_in_words(bench: Any) -> None:
    end = end_with(bench, "http://127.0.0.1:9/v1")
    assert "127.0.0.1:9" in end["detail"]


def test_a_teacher_that_says_429_for_ever_is_given_up_with_bounds(bench: Any) -> None:
    with teacher(429, lambda: {"error": {"message": "slow down"}}) as url:
        end = end_with(bench, url)
    assert "429" in end["detail"]


def test_a_teacher_that_talks_garbage_is_given_up_and_its_answers_are_kept(bench: Any) -> None:
    answer = {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "blah blah"}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }  # fmt: skip
    with teacher(200, lambda: answer) as url:
        end = end_with(bench, url, num_actors=2)  # two, so that they share a gate
    assert "gave no row that could be kept" in end["detail"]
    assert "blah blah" in end["detail"]
    assert len(bench.store.list("answers/")) >= 40


def test_a_model_that_does_not_exist_is_said_before_a_step_is_made(bench: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Say hello.", "input": "", "output": "Hello."}] * 8))
    bench.create(train={"model": "nobody/no-such-model"}, data={"from": str(rows), **WITHOUT_GENERATION})
    assert bench.wait_exit(bench.start()) is StopReason.USER_ERROR
    end = bench.end_of(1)
    assert end["exit_code"] == 2
    assert "nobody/no-such-model" in end["detail"]


WITHOUT_GENERATION = {"teacher": None, "num_rows": 52_000, "num_actors": 2, "concurrency": "auto", "part_requests": 8}
