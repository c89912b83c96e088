"""Shared chats: HTML becomes the Markdown it stands for, code survives, broken ones go, good ones are not touched."""

from __future__ import annotations

import pytest

from alpaca_jobs.data.cleaning import clean_chats, to_markdown
from alpaca_jobs.data.formats import Example, Turn
from alpaca_jobs.errors import DataError


def chat(*texts: str, name: str = "c") -> Example:
    """Turns of user and assistant; `S:`, `U:` and `A:` in front say otherwise."""
    roles = {"S": "system", "U": "user", "A": "assistant"}
    turns = []
    for place, text in enumerate(texts):
        if text[1:2] == ":":
            turns.append(Turn(roles[text[0]], text[2:]))  # type: ignore[arg-type]
        else:
            turns.append(Turn("assistant" if place % 2 else "user", text))
    return Example(name, tuple(turns))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("<p>One <strong>two</strong></p><ul><li>a</li><li>b</li></ul>", "One **two**\n\n- a\n- b"),
        ('<pre><code class="language-python">a_b = 1 * 2\nif a &lt; b:\n    pass\n</code></pre>',
         "```python\na_b = 1 * 2\nif a < b:\n    pass\n```"),
        ("<div><h2>Title</h2><p>x &amp; y_z</p></div>", "## Title\n\nx & y_z"),
        ("<p>See</p><div>Copy code\n</div><p>that</p>", "See\n\nthat"),
    ],
)  # fmt: skip
def test_html_becomes_markdown(given: str, wanted: str) -> None:
    assert to_markdown(given) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "Plain *text* with_underscores, a < b and c > d.",
        "Use `<div>` for a block.",
        "Here:\n```html\n<div><p>kept</p></div>\n```",
        "An <unknown> thing & more",
        "",
    ],
)
def test_what_is_no_html_stays_to_the_letter(text: str) -> None:
    assert to_markdown(text) == text


def test_what_is_before_the_first_question_and_after_the_last_answer_goes() -> None:
    found = clean_chats([chat("A:Welcome", "U:Hi", "A:Hello", "U:Still there?"), chat("S:Be kind", "U:a", "A:b")])
    assert [[turn.text for turn in one.turns] for one in found.chats] == [["Hi", "Hello"], ["Be kind", "a", "b"]]
    assert not found.drops


def test_broken_chats_are_dropped_each_with_its_reason() -> None:
    found = clean_chats(
        [
            chat("U:only a question"),
            chat("U:a", "A:  "),
            chat("U:a", "U:b", "A:c"),
            chat("good", "answer"),
            chat("good", "answer"),
            chat("U:a", "S:middle", "A:b"),
        ]
    )
    assert found.drops == {"empty": 2, "not_in_turn": 2, "repeated": 1}
    assert len(found.chats) == 1


def test_chats_in_another_language_are_dropped_only_when_one_is_named() -> None:
    english = chat("How do I boil an egg so that it stays soft?", "Put it in boiling water for six minutes.")
    german = chat("Wie koche ich ein Ei, damit es weich bleibt?", "Lege es sechs Minuten in kochendes Wasser.")
    assert clean_chats([english, german], language="en").chats == [english]
    assert clean_chats([english, german], language="de").drops == {"foreign": 1}
    assert len(clean_chats([english, german]).chats) == 2


def test_chats_too_short_to_tell_stay_and_a_language_that_is_none_is_refused() -> None:
    short = [chat("2+2?", "4"), chat("Hi", "Hallo"), chat("Ciao?", "Ja.")]
    assert clean_chats(short, language="en").chats == short
    assert clean_chats([chat("请告诉我今天的天气怎么样", "今天天气很好")], language="en").drops == {"foreign": 1}
    for word in ("EN", "english"):
        with pytest.raises(DataError, match="is no language code known here"):
            clean_chats(short, language=word)


def test_html_in_a_question_is_what_it_is_about() -> None:
    asked = "What is wrong here? <div><p>One</div></p>"
    found = clean_chats([chat(asked, "<p>The <strong>order</strong></p>")])
    assert [turn.text for turn in found.chats[0].turns] == [asked, "The **order**"]
    assert found.num_html == 1


def test_answers_of_the_service_drop_their_chat_and_the_list_of_them_is_the_callers() -> None:
    limited = chat("Hi there", "!Too many requests in 1 hour. Try again later.")
    quoted = chat("Hi", "It says: Too many requests in 1 hour. Try again later.")
    assert clean_chats([limited, quoted]).drops == {"blocked": 1}
    assert clean_chats([limited, quoted], blocked=()).chats == [limited, quoted]
    assert clean_chats([chat("a", "Network error")], blocked=["Network error"]).drops == {"blocked": 1}


def test_long_chats_are_split_between_exchanges_and_keep_their_system_text() -> None:
    words = [f"w{number} " * 10 for number in range(8)]
    found = clean_chats([chat("S:sys", *(f"{'UA'[n % 2]}:{text}" for n, text in enumerate(words)))], max_length=45)
    assert [one.name for one in found.chats] == ["c_0", "c_1"]
    assert [[turn.role for turn in one.turns] for one in found.chats] == [["system", *["user", "assistant"] * 2]] * 2
    assert [turn.text for one in found.chats for turn in one.turns[1:]] == words
    assert found.num_split == 1
    whole = clean_chats([chat("a " * 100, "b " * 100)], max_length=50)
    assert len(whole.chats) == 1, "one exchange is never cut"
