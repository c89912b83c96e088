"""The demo teacher: one request has one answer, every filter finds work, and it never outlives its parent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_jobs.data.rows import Row
from alpaca_jobs.generation.completer import Completer, TeacherAnswer
from alpaca_jobs.generation.filters import FILTERS
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL, offline_teacher_spec
from alpaca_jobs.generation.offline_teacher import OfflineTeacher, serve
from alpaca_jobs.generation.pipeline import Pipeline
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.statistics import GenerationStatistics
from alpaca_jobs.spec import DataSpec

pytestmark = pytest.mark.process

DATA = DataSpec(teacher="offline", num_rows=10_000)
SEEDS = load_seed_tasks("builtin")


def _ask_all(server: OfflineTeacher, numbers: Sequence[int], *, api: str = "completions") -> list[TeacherAnswer]:
    """Ask many requests at a time; the answers come in the order of `numbers`."""

    async def run() -> list[TeacherAnswer]:
        teacher = offline_teacher_spec(server.base_url).model_copy(update={"api": api})
        completer = Completer(teacher, api_key=None)
        slots, pipeline = asyncio.Semaphore(16), Pipeline(DATA, SEEDS)

        async def one(number: int) -> TeacherAnswer:
            async with slots:
                return await completer.complete(pipeline.request(number))

        try:
            return await asyncio.gather(*(one(number) for number in numbers))
        finally:
            await completer.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def answers() -> list[TeacherAnswer]:
    with serve() as server:
        return _ask_all(server, range(1, 361))


@pytest.fixture(scope="module")
def consumed(answers: list[TeacherAnswer]) -> tuple[list[Row], list[GenerationStatistics]]:
    """All rows, and the statistics of every 40 requests by themselves."""
    pipeline, rows, windows = Pipeline(DATA, SEEDS), [], [GenerationStatistics()]
    for answer in answers:
        if windows[-1].num_requests == 40:
            windows.append(GenerationStatistics())
        result = pipeline.consume(answer)
        windows[-1].add(result)
        rows += result.rows
    return rows, windows


def test_every_filter_drops_something_and_good_rows_remain(consumed: Any) -> None:
    _, windows = consumed
    first = windows[0]  # as few requests as a demo run makes
    expected = {reason for reason, _ in FILTERS} | {"malformed", "cut_off", "similar"}
    assert expected <= set(first.drops)
    assert 0.4 <= first.accept_rate <= 0.8
    assert sum((window.drops for window in windows), Counter())["refused"] > 0


def test_it_keeps_giving_new_rows_past_two_thousand(consumed: Any) -> None:
    rows, windows = consumed
    assert len(rows) >= 2000
    assert all(0.4 <= window.accept_rate <= 0.8 for window in windows)
    assert len({row.instruction for row in rows}) == len(rows)


def test_rows_are_varied_and_about_half_have_an_input(consumed: Any) -> None:
    rows, _ = consumed
    assert len({row.instruction.split()[0] for row in rows}) > 60
    assert 0.15 < sum(bool(row.input) for row in rows) / len(rows) < 0.6
    assert len({row.output for row in rows}) > 0.4 * len(rows)


def test_some_requests_are_refused_the_first_time(answers: list[TeacherAnswer]) -> None:
    retried = sum(answer.retries > 0 for answer in answers)
    assert 0.05 * len(answers) < retried < 0.25 * len(answers)


def test_another_start_gives_the_same_answers_in_any_order(answers: list[TeacherAnswer]) -> None:
    with serve() as server:
        again = _ask_all(server, range(40, 0, -1))
    assert [(a.number, a.text, a.finish_reason) for a in reversed(again)] == [
        (a.number, a.text, a.finish_reason) for a in answers[:40]
    ]


def test_the_chat_endpoint_answers_in_the_same_format() -> None:
    with serve() as server:
        answers = _ask_all(server, range(1, 13), api="chat")
    pipeline = Pipeline(DATA, SEEDS)
    assert sum(len(pipeline.consume(answer).rows) for answer in answers) > 40


def test_usage_adds_up_and_costs_nothing(answers: list[TeacherAnswer]) -> None:
    for answer in answers:
        assert answer.prompt_tokens is not None
        assert answer.prompt_tokens > 300
        assert answer.completion_tokens is not None
        assert abs(answer.completion_tokens - len(answer.text) / 4) < 1
        assert answer.cost_usd == 0.0


def _post(url: str, body: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, dict(reply.headers), json.load(reply)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, dict(exc.headers), json.load(exc)


def test_everything_it_says_is_marked_as_demo_data() -> None:
    with serve(refuses_some=False) as server:
        body = {"model": OFFLINE_MODEL, "prompt": "###\n4. Instruction:", "max_tokens": 900}
        status, headers, reply = _post(f"{server.base_url}/completions", body)
        with urllib.request.urlopen(f"{server.base_url}/models", timeout=10) as models:
            listed = json.load(models)
    assert (status, headers["x-demo-data"], reply["demo"], reply["model"]) == (200, "true", True, "offline-demo")
    assert [model["id"] for model in listed["data"]] == ["offline-demo"]


def test_it_counts_tokens_stops_and_complains_as_a_real_server_does() -> None:
    prompt = "###\n4. Instruction:"
    with serve(refuses_some=False, context_tokens=1000) as server:
        url, body = f"{server.base_url}/completions", {"model": OFFLINE_MODEL, "prompt": prompt, "max_tokens": 900}
        short = _post(url, {**body, "max_tokens": 5})[2]["choices"][0]
        assert (len(short["text"]), short["finish_reason"]) == (20, "length")
        stopped = _post(url, {**body, "stop": ["\n5. Instruction:"]})[2]["choices"][0]
        assert "5. Instruction" not in stopped["text"]
        for change, status, code in (
            ({"model": "gpt-4o-mini"}, 404, "model_not_found"),
            ({"max_tokens": 999}, 400, "context_length_exceeded"),
            ({"prompt": None}, 400, "invalid_request"),
            ({"stream": True}, 400, "unsupported_value"),
        ):
            got, _, reply = _post(url, {**body, **change})
            assert (got, reply["error"]["code"]) == (status, code)
        assert _post(url, b"not json")[0] == 400
        assert _post(url, b"[]")[0] == 400
        assert _post(f"{server.base_url}/embeddings", body)[0] == 404


def test_the_log_counts_requests_by_digest(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serve(log=log) as server:
        _ask_all(server, range(1, 41))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    answered = Counter(entry["digest"] for entry in entries if entry["status"] == 200)
    assert len(answered) == 40
    assert set(answered.values()) == {1}, "an answered request is not asked again"
    assert {entry["status"] for entry in entries} == {200, 429, 500}
    assert len({entry["prompt"] for entry in entries}) == 40


SERVER = [sys.executable, "-m", "alpaca_jobs.generation.offline_teacher", "--port", "0"]


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, "the server ended before it was ready"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return path.read_text()


def test_the_command_writes_its_address_and_nothing_to_stdout(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [*SERVER, "--ready-file", str(ready), "--no-refusals"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    url = _wait_for(ready, process)
    status, _, reply = _post(
        f"{url}/completions", {"model": OFFLINE_MODEL, "prompt": "4. Instruction:", "max_tokens": 90}
    )
    process.terminate()
    out, err = process.communicate(timeout=10)
    assert (status, reply["demo"], out) == (200, True, b"")
    assert b"offline teacher: answering at http://127.0.0.1:" in err
    assert not list(tmp_path.glob("*.half"))


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import subprocess; p = subprocess.Popen({[*SERVER, '--ready-file', str(ready)]!r}); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    _wait_for(ready, parent)
    (server,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait(timeout=10)
    server.wait(timeout=10)  # raises TimeoutExpired if it is still there
    assert not server.is_running()


def test_a_server_whose_parent_is_gone_already_does_not_start() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    result = subprocess.run([*SERVER, "--parent-pid", str(gone.pid)], capture_output=True, timeout=20)
    assert result.returncode == 1
    assert os.fsdecode(result.stderr) == f"offline teacher: the parent process {gone.pid} is gone already\n"
