"""The completer with openai's real client against real servers on this machine, good, bad and absent."""

from __future__ import annotations

import asyncio
import json
import runpy
import threading
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.errors import TeacherAuth, TeacherError, TeacherGarbage, TeacherUnreachable
from alpaca_jobs.generation.completer import Completer, TeacherAnswer
from alpaca_jobs.generation.pricing import cost_usd, num_billable_tries, worst_try_usd
from alpaca_jobs.generation.teacher_reply import read_retry_after
from alpaca_jobs.generation.tries import PromptTooLong
from alpaca_jobs.spec import TeacherSpec

Reply = tuple[int, dict[str, str], bytes]
_helper = runpy.run_path(str(Path(__file__).with_name("scripted_teacher.py")))
KEY, REQUEST, USAGE, _serving, _json, _error, _text, _chat, _ask = (
    _helper[name] for name in ("KEY", "REQUEST", "USAGE", "_serving", "_json", "_error", "_text", "_chat", "_ask")
)


def test_a_completions_answer_arrives_with_its_usage_and_cost() -> None:
    asked = _ask(lambda n, body: _text(**USAGE), price_per_million_input_usd=2, price_per_million_output_usd=8)
    assert asked.answer == TeacherAnswer(
        7, "d1gest", " Do it", "stop", 10, 20, (10 * 2 + 20 * 8) / 1e6, 0, (10 * 2 + 20 * 8) / 1e6
    )
    assert asked.asked == [
        {
            "path": "/v1/completions",
            "model": "m1",
            "prompt": "Continue:",
            "max_tokens": 1000,
            "temperature": 0.9,
            "top_p": 0.8,
            "stop": ["\n21."],
            "logit_bias": {"50256": -100},
        }
    ]
    assert asked.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_chat_answer_is_asked_for_without_logit_bias() -> None:
    asked = _ask(lambda n, body: _chat(content="4. Instruction: x"), api="chat")
    assert asked.answer is not None
    assert asked.answer.text == "4. Instruction: x"
    assert asked.asked[0]["path"] == "/v1/chat/completions"
    assert asked.asked[0]["messages"] == [{"role": "user", "content": "Continue:"}]
    assert "logit_bias" not in asked.asked[0]


def test_without_usage_or_prices_the_cost_is_unknown_not_zero() -> None:
    priced = {"price_per_million_input_usd": 2, "price_per_million_output_usd": 8}
    without_usage = _ask(lambda n, body: _text(), **priced).answer
    assert without_usage is not None
    assert (without_usage.prompt_tokens, without_usage.cost_usd) == (None, None)
    without_prices = _ask(lambda n, body: _text(**USAGE)).answer
    assert without_prices is not None
    assert (without_prices.prompt_tokens, without_prices.cost_usd) == (10, None)


def test_answers_survive_json() -> None:
    answer = TeacherAnswer(1, "d", "täxt\n", "stop", None, 3, None, 2)
    assert TeacherAnswer.from_json({**json.loads(json.dumps(answer.to_json())), "nonce": "n"}) == answer


def test_what_is_free_costs_nothing_even_without_usage() -> None:
    free = TeacherSpec(model="m", price_per_million_input_usd=0, price_per_million_output_usd=0)
    assert cost_usd(free, None, None) == 0.0


def test_a_short_rate_limit_is_waited_for_as_long_as_asked() -> None:
    asked = _ask(lambda n, body: _text() if n == 2 else _error(429, retry_after=["2", "0.5"][n]))
    assert asked.answer is not None
    assert asked.answer.retries == 2
    assert asked.waits == [2 * 1.125, 0.5 * 1.125], "never earlier than the server said, and not all at once"


@pytest.mark.parametrize(
    "refusal",
    [
        _error(429, f"quota of {KEY}", code="insufficient_quota"),  # OpenAI
        _error(402, "Insufficient Balance", code="invalid_request_error"),  # DeepSeek
        _error(402, f"{KEY} requires more credits, or fewer max_tokens", code="402"),  # OpenRouter
    ],
)
def test_an_account_without_credit_is_not_a_rate_limit_and_no_wrong_request(refusal: Reply) -> None:
    asked = _ask(lambda n, body: refusal, api_key_env="MY_KEY")
    assert isinstance(asked.error, TeacherAuth)
    assert len(asked.asked) == 1
    assert f"HTTP {refusal[0]}, the key's account has no credit left" in str(asked.error)
    assert "Add credit to the account that the key in MY_KEY belongs to; then resume: what was" in str(asked.error)


def test_pauses_double_with_jitter_when_the_server_names_none() -> None:
    asked = _ask(lambda n, body: _text() if n == 3 else _error(500))
    assert asked.answer is not None
    assert asked.waits == [0.375, 0.75, 1.5]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_at_once_and_is_not_repeated(status: int) -> None:
    asked = _ask(lambda n, body: _error(status, f"Incorrect API key provided: {KEY}"), api_key_env="MY_KEY")
    assert isinstance(asked.error, TeacherAuth)
    assert len(asked.asked) == 1
    assert f"HTTP {status}, the key was refused. Check the key in MY_KEY." in str(asked.error)


def test_a_server_that_wants_a_key_where_none_is_named_says_what_to_set() -> None:
    asked = _ask(lambda n, body: _error(401), api_key_env=None, api_key=None)
    assert "set teacher.api_key_env" in str(asked.error)


def test_without_a_key_the_one_in_the_environment_stays_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked = _ask(lambda n, body: _text(), api_key=None)
    assert KEY not in asked.headers[0]["authorization"]


def test_a_key_with_a_line_break_at_its_end_is_sent_without_it() -> None:
    assert _ask(lambda n, body: _text(), api_key=f"{KEY}\n").headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", [f"{KEY}\nb", f"{KEY}\u201d", f"a {KEY}"])
def test_a_key_that_cannot_be_one_is_refused_without_repeating_it(key: str) -> None:
    asked = _ask(lambda n, body: _text(), api_key=key, api_key_env="MY_KEY")
    assert isinstance(asked.error, TeacherAuth)
    assert "The key in MY_KEY holds a space, a line break" in str(asked.error)
    assert asked.asked == []


def test_a_proxy_in_the_environment_does_not_stand_between_us_and_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert _ask(lambda n, body: _text()).answer is not None


def test_structured_output_is_asked_for_by_its_schema() -> None:
    request = replace(REQUEST, schema={"type": "object"})
    asked = _ask(lambda n, body: _chat(content="{}"), request=request, api="chat", answer_format="json")
    assert asked.asked[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_request_given_up_as_garbage_says_what_it_cost() -> None:
    asked = _ask(lambda n, body: _text(None, **USAGE), **PRICED)
    assert isinstance(asked.error, TeacherGarbage)
    given_up = asked.error.answer
    assert isinstance(given_up, TeacherAnswer)
    assert (given_up.number, given_up.digest, given_up.finish_reason) == (7, "d1gest", "unusable")
    assert given_up.at_most_usd == pytest.approx(3 * 180e-6)
    assert "choices[0].text is 'None'" in given_up.text


PRICED: dict[str, Any] = {"price_per_million_input_usd": 2, "price_per_million_output_usd": 8}


@pytest.mark.parametrize("kind", ["garbage", "timeout", "lost", "no usage"])
def test_no_request_can_cost_more_than_all_its_billable_tries(kind: str) -> None:
    """Whatever happens to the tries before the last, `at_most_usd` counts each at its tokens or its worst case."""
    teacher = TeacherSpec(model="m", max_billed_retries=2, **PRICED)
    worst = worst_try_usd(teacher, REQUEST.prompt, REQUEST.max_tokens)
    assert worst is not None
    used = (10 * 2 + 20 * 8) / 1e6

    def script(n: int, body: dict[str, Any]) -> Reply:
        if kind == "no usage":
            return _text()
        if n == 2:
            return _text(**USAGE)
        if kind == "lost":
            raise ConnectionAbortedError
        return _text("", **USAGE) if kind == "garbage" else (200, {"content-length": "500"}, b"{")

    asked = _ask(script, timeout_s=0.3 if kind == "timeout" else 5, max_billed_retries=2, **PRICED)
    assert asked.answer is not None
    bound = asked.answer.at_most_usd
    assert bound == pytest.approx({"garbage": 3 * used, "no usage": worst}.get(kind, 2 * worst + used))
    assert (asked.answer.cost_usd is None) == (kind != "garbage"), "unknown is not nothing"
    assert bound <= num_billable_tries(teacher) * worst


def test_what_is_not_billed_is_asked_again_to_the_full_count_and_costs_nothing() -> None:
    asked = _ask(lambda n, body: _text(**USAGE) if n == 3 else _error([429, 500, 503][n]), **PRICED)
    assert asked.answer is not None
    assert asked.answer.at_most_usd == asked.answer.cost_usd == pytest.approx(180e-6)


def test_a_free_teacher_is_asked_again_as_often_as_any() -> None:
    free = {"price_per_million_input_usd": 0, "price_per_million_output_usd": 0}
    asked = _ask(lambda n, body: _text(None), **free)
    assert len(asked.asked) == 4


def test_a_broken_server_is_unreachable_and_its_words_are_passed_on_without_the_key() -> None:
    asked = _ask(lambda n, body: _error(503, f"overloaded, dear {KEY}"), patience_s=5)
    assert isinstance(asked.error, TeacherUnreachable)
    assert "HTTP 503: overloaded, dear ***" in str(asked.error)


GARBAGE = {
    "not JSON": (200, {}, b"<html>hello</html>"),
    "not JSON and not said to be": (200, {"content-type": "text/html"}, b"<html>hello</html>"),
    "empty body": (200, {}, b""),
    "cut JSON": (200, {}, b'{"choices": [{"text": "a'),
    "a list": _json([]),
    "null": _json(None),
    "no choices": _json({"error": {"message": "hidden"}}),
    "empty choices": _json({"choices": []}),
    "choices of text": _json({"choices": ["x"]}),
    "null text": _text(None),
    "number text": _text(5),
    "empty text": _text("  \n"),
    "an event stream": (200, {"content-type": "text/event-stream"}, b'data: {"error": "x"}\n\ndata: [DONE]\n\n'),
}


@pytest.mark.parametrize("reply", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_asked_again_and_named_in_the_end(reply: Reply) -> None:
    asked = _ask(lambda n, body: reply)
    assert isinstance(asked.error, TeacherGarbage)
    assert len(asked.asked) == 3, "once and max_billed_retries, not max_retries: each may have been billed"
    assert "An OpenAI-compatible completions answer is wanted" in str(asked.error)
    recovered = _ask(lambda n, body: reply if n == 0 else _text())
    assert recovered.answer is not None
    assert recovered.answer.retries == 1


@pytest.mark.parametrize("message", [None, {}, {"content": None}, {"content": ["x"]}, "text"])
def test_chat_garbage_is_garbage_too(message: Any) -> None:
    asked = _ask(lambda n, body: _json({"choices": [{"message": message}]}), api="chat")
    assert isinstance(asked.error, TeacherGarbage)


def test_garbage_that_was_billed_is_part_of_the_cost() -> None:
    asked = _ask(
        lambda n, body: _text(**USAGE) if n else _text(None, **USAGE),
        price_per_million_input_usd=1,
        price_per_million_output_usd=1,
    )
    assert asked.answer is not None
    assert (asked.answer.prompt_tokens, asked.answer.completion_tokens) == (20, 40)
    assert asked.answer.cost_usd == pytest.approx(60e-6)


@pytest.mark.parametrize(
    ("api", "reply"),
    [
        ("completions", _text("half of", "content_filter")),
        ("chat", _chat("content_filter", content=None)),
        ("chat", _chat(content=None, refusal="I can't help with that.")),
        ("chat", _error(400, "The prompt was filtered", code="content_filter")),  # Azure
        ("chat", _error(400, "Content Exists Risk", code="invalid_request_error")),  # DeepSeek
        ("chat", _error(400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy.")),
        ("chat", _error(400, "<400> InternalError.Algo", code="data_inspection_failed")),  # Qwen
        ("chat", _error(403, "m1 requires moderation. Your input was flagged for violence")),  # OpenRouter
    ],
)
def test_a_refusal_is_an_answer_without_rows(api: str, reply: Reply) -> None:
    answer = _ask(lambda n, body: reply, api=api).answer
    assert answer is not None
    assert (answer.text, answer.finish_reason, answer.retries) == ("", "content_filter", 0)


@pytest.mark.parametrize(
    "error",
    [
        _error(400, "too long", code="context_length_exceeded"),
        _error(400, "This model's maximum context length is 4097 tokens, however you requested 5000 tokens"),
        _error(400, "max_tokens is too large: 1000. This model supports at most 512 completion tokens"),
    ],
)
def test_a_completion_that_does_not_fit_is_cut_to_80_percent_until_it_does(error: Reply) -> None:
    asked = _ask(lambda n, body: error if body["max_tokens"] > 600 else _text())
    assert asked.answer is not None
    assert [body["max_tokens"] for body in asked.asked] == [1000, 800, 640, 512]
    assert asked.waits == []


def test_a_prompt_that_alone_does_not_fit_is_an_error_in_words() -> None:
    asked = _ask(lambda n, body: _error(400, "maximum context length is 5 tokens"))
    assert type(asked.error) is PromptTooLong
    assert asked.error.answer is not None
    assert (asked.error.answer.finish_reason, asked.error.answer.cost_usd) == ("too_long", None)  # of unknown price
    assert "the prompt of request 7 alone does not fit the model" in str(asked.error)
    assert asked.asked[-1]["max_tokens"] == 1


def test_a_model_that_does_not_exist_stops_at_once() -> None:
    asked = _ask(lambda n, body: _error(404, "The model m1 does not exist"))
    assert type(asked.error) is TeacherError
    assert "HTTP 404: The model m1 does not exist. Check teacher.model" in str(asked.error)
    assert len(asked.asked) == 1


def test_a_model_that_calls_the_limit_otherwise_is_asked_its_way() -> None:
    def script(n: int, body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return _error(400, "use the other name", code="unsupported_parameter", param="max_tokens")
        if "stop" in body:
            return _error(400, "not with this model", code="unsupported_parameter", param="stop")
        return _chat(content="yes")

    asked = _ask(script, api="chat")
    assert asked.answer is not None
    assert asked.asked[-1]["max_completion_tokens"] == 1000
    assert "stop" not in asked.asked[-1]


def test_a_temperature_that_is_not_supported_is_never_dropped_silently() -> None:
    asked = _ask(lambda n, body: _error(400, "only 1", code="unsupported_value", param="temperature"), temperature=0.9)
    assert type(asked.error) is TeacherError
    assert "HTTP 400: only 1" in str(asked.error)


BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."


@pytest.mark.parametrize(
    ("words", "param", "gone"),
    [
        ("Unsupported parameter: 'temperature' is not supported with this model.", "temperature", "temperature"),
        ("litellm.UnsupportedParamsError: gpt-5 models don't support temperature=1.0.", "", "temperature"),
        ("litellm.UnsupportedParamsError: m1 does not support parameters: ['top_p'], for model=m1", "", "top_p"),
        ("Argument not supported on this model: stop", "", "stop"),
        ("Model m1 does not support parameter stop.", "", "stop"),
        ("Unrecognized request argument supplied: top_p", "", "top_p"),
        (f"The model returned the following errors: {BOTH}", "", "top_p"),
    ],
)
def test_a_parameter_that_is_refused_in_words_alone_is_left_out_where_that_says_the_same(
    words: str, param: str, gone: str
) -> None:
    plain = replace(REQUEST, temperature=1.0, top_p=1.0)
    asked = _ask(
        lambda n, body: _error(400, words, param=param) if gone in body else _chat(content="yes"), api="chat",
        request=plain,
    )  # fmt: skip
    assert asked.answer is not None
    assert [{"temperature", "top_p", "stop"} - set(body) for body in asked.asked] == [set(), {gone}]


@pytest.mark.parametrize(
    ("words", "heat", "top_p"),
    [("Unsupported parameter: 'temperature' is not supported.", 0.9, 1.0), (BOTH, 0.9, 0.8), ("no top_p", 1.0, 1.0)],
)
def test_what_the_user_set_is_not_left_out_because_of_words(words: str, heat: float, top_p: float) -> None:
    wanted = replace(REQUEST, temperature=heat, top_p=top_p)
    asked = _ask(lambda n, body: _error(400, words), request=wanted, temperature=heat, top_p=top_p)
    assert type(asked.error) is TeacherError
    assert len(asked.asked) == 1


def test_of_two_parameters_that_exclude_each_other_the_one_that_the_user_set_stays() -> None:
    asked = _ask(
        lambda n, body: _error(400, BOTH) if {"temperature", "top_p"} <= set(body) else _chat(content="yes"),
        api="chat", request=replace(REQUEST, temperature=1.0, top_p=0.8), top_p=0.8,
    )  # fmt: skip
    assert asked.answer is not None
    assert (asked.asked[-1]["top_p"], "temperature" in asked.asked[-1]) == (0.8, False)


def test_a_recipes_own_temperature_is_left_out_for_a_model_that_takes_none() -> None:
    def script(n: int, body: dict[str, Any]) -> Reply:
        if "temperature" in body and body["temperature"] != 1:
            return _error(400, "only the default (1)", code="unsupported_value", param="temperature")
        return _chat(content="Yes")

    asked = _ask(script, api="chat", request=replace(REQUEST, temperature=0.0))
    assert asked.answer is not None
    assert "temperature" not in asked.asked[-1]


def test_a_lone_surrogate_in_an_answer_can_be_stored() -> None:
    answer = _ask(lambda n, body: (200, {}, b'{"choices": [{"text": "a\\ud800b"}]}')).answer
    assert answer is not None
    assert answer.text.encode("utf-8") == b"a?b"


def test_many_requests_run_at_the_same_time() -> None:
    together = threading.Barrier(8)

    def script(n: int, body: dict[str, Any]) -> Reply:
        together.wait(timeout=10)  # no request is answered until eight are there
        return _text()

    async def ask_all(base_url: str) -> list[TeacherAnswer]:
        completer = Completer(TeacherSpec(model="m", base_url=base_url, api="completions"), api_key=None)
        answers = await asyncio.gather(*(completer.complete(replace(REQUEST, number=n)) for n in range(1, 9)))
        await completer.close()
        return answers

    with _serving(script) as server:
        answers = asyncio.run(ask_all(server.base_url))
    assert [answer.number for answer in answers] == list(range(1, 9))


def test_retry_after_is_read_in_all_its_forms() -> None:
    now_s = 1_700_000_000.0
    assert read_retry_after({"retry-after": "7"}, now_s=now_s) == 7
    assert read_retry_after({"retry-after-ms": "250", "retry-after": "1"}, now_s=now_s) == 0.25
    assert read_retry_after({"retry-after": formatdate(now_s + 90, usegmt=True)}, now_s=now_s) == pytest.approx(90)
    assert read_retry_after({"retry-after": formatdate(now_s - 90, usegmt=True)}, now_s=now_s) == 0
    for nonsense in ("", "soon", "-5", "nan", "inf"):
        assert read_retry_after({"retry-after": nonsense}, now_s=now_s) is None
    assert read_retry_after({}, now_s=now_s) is None
