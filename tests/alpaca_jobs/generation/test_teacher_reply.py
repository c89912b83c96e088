"""What comes back where an answer should be: an error in its own words, however a server or a gateway sends it."""

from __future__ import annotations

import pytest

from alpaca_jobs.generation.teacher_reply import Unusable, read_reply


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
