"""What comes back, however a server or a gateway sends it: errors in their own words, and every token."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alpaca_jobs.generation.teacher_reply import Unusable, Usage, read_reply


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"error": {"message": "upstream is overloaded", "code": 503}}', "(code 503): upstream is overloaded"),
        (b'{"error": "out of memory"}', "an error in place of an answer: out of memory"),
        (b'{"error": {}, "id": 1}', "no choices; its fields are error, id"),
        (b'{"error": {"type": "x"}}', "an error in place of an answer: without a word"),
        (b': ping\n\ndata: {"error": {"message": "engine died"}}\n\ndata: [DONE]\n\n', "an answer: engine died"),
        (b"data: {broken\n\ndata: [DONE]\n\n", "not JSON: b'data: {broken"),
        (b'data: ["error"]\n\n', "not JSON"),
    ],
)
@pytest.mark.parametrize("is_chat", [False, True])
def test_an_error_that_comes_as_an_answer_or_a_stream_is_repeated(body: bytes, words: str, is_chat: bool) -> None:
    with pytest.raises(Unusable) as caught:
        read_reply(body, is_chat=is_chat)
    assert words in str(caught.value)
    assert caught.value.usage.total is None, "what it cost is not known, so it counts at its worst case"


@pytest.mark.parametrize(
    ("said", "used"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}, Usage(10, 20)),
        ({"prompt_tokens": 10, "completion_tokens": 20}, Usage(10, 20)),
        ({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 0}, Usage(10, 20)),
        ({"prompt_tokens": 10, "total_tokens": 10}, Usage(10, None)),
        # xAI and Gemini: what a model thinks with is billed, and stands in the total alone.
        ({"prompt_tokens": 20, "completion_tokens": 151, "total_tokens": 553}, Usage(20, 533)),
        ({"prompt_tokens": 20, "completion_tokens": None, "total_tokens": 553}, Usage(20, 533)),
        # A gateway that counts nothing writes zeros.
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(None, None)),
    ],
)
def test_every_token_that_is_billed_is_counted_and_none_is_taken_for_nothing(said: dict[str, Any], used: Usage) -> None:
    body = {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}], "usage": said}
    assert read_reply(json.dumps(body).encode(), is_chat=True).usage == used


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nThey want 5. Instruction: no\n</think>\n\nYes",
        "They want a yes, I think.\n</think>\n\nYes",  # the template wrote the first mark
        "\n<think></think>Yes",
        "Yes",
    ],
)
def test_what_a_chat_model_thinks_aloud_is_no_part_of_its_answer(text: str) -> None:
    assert read_reply(_chat(text), is_chat=True).text == "Yes"


@pytest.mark.parametrize("why", ["length", "model_length", "error", "insufficient_system_resource", "abort"])
@pytest.mark.parametrize("is_chat", [False, True])
def test_a_text_that_broke_off_is_told_by_one_word_whatever_the_server_calls_it(why: str, is_chat: bool) -> None:
    body = {"choices": [{"message": {"content": "4. Inst"}, "text": "4. Inst", "finish_reason": why}]}
    assert read_reply(json.dumps(body).encode(), is_chat=is_chat).finish_reason == "length"


@pytest.mark.parametrize("why", ["stop", "eos_token", "stop_sequence"])
def test_a_text_that_ended_keeps_its_reason(why: str) -> None:
    assert read_reply(_chat("Yes", why), is_chat=True).finish_reason == why


def test_marks_of_thoughts_that_an_answer_is_about_stay() -> None:
    text = "Put <think> before it and </think> after it."
    assert read_reply(_chat(text), is_chat=True).text == text


@pytest.mark.parametrize("text", ["<think>\nThey want", "<think>so</think>\n", None])
def test_thoughts_alone_are_no_answer_and_what_helps_is_said(text: str | None) -> None:
    with pytest.raises(Unusable, match=r"finish_reason 'length'; if it thinks, raise teacher\.max_tokens"):
        read_reply(_chat(text, "length"), is_chat=True)


def _chat(text: str | None, finish_reason: str = "stop") -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]}).encode()
