"""How long the completer waits for a teacher that is away, refuses for now, or never answers in time."""

from __future__ import annotations

import asyncio
import runpy
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import TeacherGarbage, TeacherRateLimited, TeacherUnreachable
from alpaca_jobs.generation.completer import Completer, TeacherAnswer
from alpaca_jobs.generation.pricing import worst_try_usd
from alpaca_jobs.spec import TeacherSpec

Reply = tuple[int, dict[str, str], bytes]
PRICED: dict[str, Any] = {"price_per_million_input_usd": 2, "price_per_million_output_usd": 8}
_helper = runpy.run_path(str(Path(__file__).with_name("scripted_teacher.py")))
KEY, REQUEST, USAGE, OpenGate, _serving, _error, _text, _ask, _ask_once = (
    _helper[name]
    for name in ("KEY", "REQUEST", "USAGE", "OpenGate", "_serving", "_error", "_text", "_ask", "_ask_once")
)


def test_a_teacher_that_is_away_for_a_while_is_waited_for_and_loses_no_request() -> None:
    """Twenty refusals of three kinds are more than max_retries; none of them is billed."""
    asked = _ask(lambda n, body: _text(**USAGE) if n == 20 else _error([429, 500, 503][n % 3]), **PRICED)
    assert asked.answer is not None
    assert asked.answer.retries == 20
    assert asked.answer.at_most_usd == pytest.approx(180e-6)
    assert max(asked.waits) <= 30, "asked at least twice a minute"
    assert sum(news.pause_s is not None for news in asked.news) == 19, "everybody else is told to wait, too"
    late = _ask(lambda n, body: _text() if n else _error(429, retry_after="3000"), patience_s=3600)
    assert late.answer is not None, "a long Retry-After is a pause, not an end"


@pytest.mark.parametrize("status", [429, 500])
def test_patience_with_a_teacher_that_stays_away_has_an_end(status: int) -> None:
    asked = _ask(lambda n, body: _error(status, "later"), patience_s=100)
    assert isinstance(asked.error, TeacherRateLimited if status == 429 else TeacherUnreachable)
    assert 60 < sum(asked.waits) <= 100
    assert f"HTTP {status}" in str(asked.error)
    refused = _ask(lambda n, body: _error(429, retry_after="7200"))
    assert isinstance(refused.error, TeacherRateLimited)
    assert refused.waits == [], "longer than our patience is said at once"


def test_a_request_that_alone_is_never_answered_is_given_up_and_the_others_go_on() -> None:
    told: list[Any] = []

    async def both() -> tuple[Any, Any]:
        waits: list[float] = []

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            told.append(completer.absence)
            await asyncio.sleep(0.01)

        def script(n: int, body: dict[str, Any]) -> Reply:
            return _error(500, "cannot") if body["prompt"] == "poison" else _text(**USAGE)

        with _serving(script) as server:
            teacher = TeacherSpec(model="m", base_url=server.base_url, api="completions", patience_s=100)
            completer = Completer(
                teacher, api_key=KEY, gate=OpenGate([]), sleep=sleep, jitter=lambda: 0.5, clock=lambda: sum(waits)
            )
            poisoned = asyncio.create_task(completer.complete(replace(REQUEST, prompt="poison")))
            while not waits:
                await asyncio.sleep(0.001)
            assert completer.absence is not None
            good = await completer.complete(REQUEST)
            assert completer.absence is None
            (found,) = await asyncio.gather(poisoned, return_exceptions=True)
            await completer.close()
            return good, found

    good, poisoned = asyncio.run(both())
    assert good.text == " Do it"
    assert isinstance(poisoned, TeacherGarbage), "a drop, not the end of the run"
    assert told[-1] is not None, (
        "an answer that was under way when it was refused first does not hide the silence since"
    )
    assert isinstance(poisoned.answer, TeacherAnswer)
    assert (poisoned.answer.finish_reason, poisoned.answer.prompt_tokens) == ("unusable", 0)


def test_a_rate_limit_for_ever_ends_after_the_retries_where_there_is_no_patience() -> None:
    asked = _ask(lambda n, body: _error(429, "slow down", retry_after="1"), patience_s=0)
    assert isinstance(asked.error, TeacherRateLimited)
    assert asked.error.retry_after_s == 1.0
    assert len(asked.asked) == 4, "once and three retries"
    assert "request 7 after 4 tries: HTTP 429, too many requests" in str(asked.error)
    assert "data.concurrency" in str(asked.error)


def test_a_very_long_retry_after_is_handed_to_the_caller_where_there_is_no_patience() -> None:
    asked = _ask(lambda n, body: _error(429, retry_after="3600"), patience_s=0)
    assert isinstance(asked.error, TeacherRateLimited)
    assert asked.error.retry_after_s == 3600
    assert asked.waits == []


@pytest.mark.parametrize(("patience_s", "tries"), [(0, 3), (10, 5)])
def test_a_refused_connection_is_unreachable_in_the_end(patience_s: float, tries: int) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    teacher = TeacherSpec(model="m", base_url=url, max_retries=2, patience_s=patience_s)
    result = asyncio.run(_ask_once(teacher, REQUEST, KEY))
    assert isinstance(result.error, TeacherUnreachable)
    assert len(result.waits) == tries - 1
    assert f"teacher m at {url}, request 7" in str(result.error)
    assert ": no connection" in str(result.error)
    assert "Check teacher.base_url" in str(result.error)


def test_a_request_without_an_answer_in_time_is_given_up_at_its_worst_case() -> None:
    def hangs_up(n: int, body: dict[str, Any]) -> Reply:
        return 200, {"content-length": "500"}, b"{"

    asked = _ask(hangs_up, timeout_s=0.3, max_retries=1, **PRICED)
    assert isinstance(asked.error, TeacherGarbage), "a counted drop; others may be answered"
    assert "no answer within 0.3 s" in str(asked.error)
    worst = worst_try_usd(TeacherSpec(model="m", **PRICED), REQUEST.prompt, REQUEST.max_tokens)
    assert isinstance(asked.error.answer, TeacherAnswer)
    assert asked.error.answer.at_most_usd == pytest.approx(2 * (worst or 0))
    own = _ask(hangs_up, timeout_s=0.3, max_retries=1, patience_s=0, **PRICED)
    assert isinstance(own.error, TeacherUnreachable), "a machine that serves its own teacher is not paid to wait for it"


@pytest.mark.parametrize("status", [408, 504, 524])
def test_a_gateway_that_waits_no_longer_may_have_cost_what_a_timeout_does(status: int) -> None:
    """The server behind it may go on answering: waited for like one that is away, it would be asked for an hour."""
    asked = _ask(lambda n, body: _error(status, "upstream timed out"), max_billed_retries=1, **PRICED)
    assert len(asked.asked) == 2
    assert isinstance(asked.error, TeacherGarbage), "a counted drop"
    assert isinstance(asked.error.answer, TeacherAnswer)
    worst = worst_try_usd(TeacherSpec(model="m", **PRICED), REQUEST.prompt, REQUEST.max_tokens)
    assert asked.error.answer.at_most_usd == pytest.approx(2 * (worst or 0))
