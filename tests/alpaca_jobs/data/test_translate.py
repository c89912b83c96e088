"""Translating rows: what is sent, what stays as it is, and which answers are none."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.data.language import is_in, language_name
from alpaca_jobs.data.protect import has_all_markers, has_all_numbers, has_words, protect, restore
from alpaca_jobs.data.record_files import Record
from alpaca_jobs.data.translate import judge, make_request, make_units, translated
from alpaca_jobs.errors import DataError
from alpaca_jobs.generation.completer import TeacherAnswer
from alpaca_jobs.spec import TeacherSpec

TEACHER = TeacherSpec(model="m", base_url="http://127.0.0.1:1/v1", api_key_env=None)
CODE = "```python\nprint('hello', 1 + 1)\n```"
OUTPUT = "It sets the x to 1024."
ROW = {"id": 7, "instruction": "Explain `x = 1` to {name}.", "input": CODE, "output": OUTPUT, "tag": "a"}


def units_of(*bodies: dict[str, Any]) -> list[Any]:
    return make_units([Record(f"f line {number}", body) for number, body in enumerate(bodies, start=1)])


def verdict(text: str, *, finish: str = "stop", is_demo: bool = False, body: dict[str, Any] = ROW) -> Any:
    (unit,) = units_of(body)
    answer = TeacherAnswer(1, "d", text, finish, 1, 1, None, 0)
    return judge(unit, answer, language="pt", source="en", is_demo=is_demo)


@pytest.mark.parametrize(
    "kept",
    [CODE, "`x = 1`", "https://a.b/c?d=1", "me@example.org", "{name}", "{{ name }}", "${HOME}", "%s", "%(n)d", "<br/>",
     '<a href="x">', "⟦4⟧", "<<<1>>>"],
)  # fmt: skip
def test_what_must_not_change_comes_back_to_the_letter(kept: str) -> None:
    store: list[str] = []
    text = f"Before {kept} after."
    sent = protect(text, store)
    assert kept not in sent.replace("⟦1⟧", "")
    assert restore(sent, store) == text
    assert restore(f"Depois ⟦ 1 ⟧ antes {sent[:6]}", store) == f"Depois {kept} antes Before"


@pytest.mark.parametrize(
    ("source", "made", "same"),
    [
        ("In 2019 it cost 1,000 dollars.", "Em 2019, custou 1.000 dólares.", True),
        ("It is 12.50.", "São 12,50.", True),
        ("It was 1945.", "那是１９４５年。", True),
        ("10 of 20", "20 de 10", True),
        ("2 apples", "duas maçãs", True),
        ("It was 1945.", "Foi 1954.", False),
        ("10 and 10", "10", False),
    ],
)
def test_numbers_are_compared_however_they_are_written(source: str, made: str, same: bool) -> None:
    assert has_all_numbers(source, made) == same


def test_markers_may_move_but_not_be_lost_or_doubled() -> None:
    assert has_all_markers("⟦1⟧ a ⟦2⟧", "⟦2⟧ ⟦ 1 ⟧ b")
    assert not has_all_markers("⟦1⟧ a ⟦2⟧", "⟦1⟧")
    assert not has_all_markers("⟦1⟧", "⟦1⟧ ⟦1⟧")
    assert not has_words("⟦1⟧ 12 + 3")


@pytest.mark.parametrize(
    ("text", "code", "fits"),
    [
        ("Escreva um pequeno poema sobre o mar e as ondas.", "pt", True),
        ("Write a short poem about the sea and the waves.", "pt", False),
        ("写一首关于大海的短诗", "zh", True),
        ("Write a short poem about the sea and the waves.", "zh", False),
        ("海についての短い詩を書いてください", "ja", True),
        ("写一首关于大海的短诗", "ja", False),
        ("Lisboa", "pt", True),
    ],
)
def test_the_language_of_an_answer(text: str, code: str, fits: bool) -> None:
    assert is_in(text, code, not_in="en") == fits


def test_an_unknown_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"'xx' is no language code known here. Known are ar, .*zh"):
        language_name("xx")


def test_a_record_keeps_its_other_fields_and_its_code() -> None:
    (unit,) = units_of(ROW)
    assert [path[-1] for path in unit.paths] == ["instruction", "output"]  # code alone needs no teacher
    good = "<<<1>>>\nExplique ⟦1⟧ para ⟦2⟧, por favor.\n<<<2>>>\nIsto define a variável x como 1024.\n"
    found = verdict(good)
    assert found.reason is None
    body = translated(
        Record("f", {**ROW, "avg_similarity_score": 0.1}), dict(zip(unit.paths, found.texts, strict=True))
    )
    assert body == {
        "id": 7, "instruction": "Explique `x = 1` para {name}, por favor.", "input": CODE,
        "output": "Isto define a variável x como 1024.", "tag": "a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("<<<1>>>\nExplique ⟦1⟧ para ⟦2⟧.\n<<<2>>>\n", "stop", "empty"),
        ("<<<1>>>\nExplique ⟦1⟧ para ⟦2⟧.\n<<<2>>>\nIsto def", "length", "cut_off"),
        ("<<<1>>>\nExplique ⟦1⟧ para ele.\n<<<2>>>\nIsto define x como 1024.", "stop", "markers_lost"),
        ("<<<1>>>\nExplique ⟦1⟧ para ⟦2⟧.\n<<<2>>>\nIsto define x como 124.", "stop", "numbers_changed"),
        ("Explique ⟦1⟧ para ⟦2⟧. Isto define x como 1024.", "stop", "malformed"),
        ("<<<1>>>\nExplain ⟦1⟧ to ⟦2⟧.\n<<<2>>>\nIt sets the x to 1024.", "stop", "untranslated"),
        ("<<<1>>>\nPlease explain ⟦1⟧ to ⟦2⟧ now.\n<<<2>>>\nIt sets that x to 1024.", "stop", "other_language"),
        ("", "content_filter", "refused"),
        ("", "unusable", "unusable"),
    ],
)
def test_answers_that_are_none_say_why(text: str, finish: str, reason: str) -> None:
    assert verdict(text, finish=finish).reason == reason


def test_the_demo_teachers_language_is_not_judged() -> None:
    assert verdict("<<<1>>>\nÊxplâîn ⟦1⟧ tô ⟦2⟧.\n<<<2>>>\nÎt sêts x tô 1024.", is_demo=True).reason is None


def test_chats_of_all_shapes_are_translated_turn_by_turn() -> None:
    chats = [
        {"conversations": [{"from": "human", "value": "Hi there"}, {"from": "gpt", "value": "Hello"}]},
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi"}]},
        {"instruction": "Do it", "instances": [{"input": "", "output": "Done"}]},
    ]
    assert [unit.texts for unit in units_of(*chats)] == [("Hi there", "Hello"), ("Hi",), ("Do it", "Done")]
    made = translated(Record("f", chats[1]), {("messages", 1, "content"): "Oi"})
    assert [turn["content"] for turn in made["messages"]] == ["", "Oi"]
    assert chats[1]["messages"][1]["content"] == "Hi"  # the record itself stays


def test_long_records_are_sent_in_parts() -> None:
    turns = [{"from": "human", "value": "word " * 800} for _ in range(4)]
    assert [len(unit.texts) for unit in units_of({"conversations": turns})] == [1, 1, 1, 1]
    assert [unit.record for unit in units_of({"conversations": turns[:2]}, ROW)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"text": "x"}, "no shape that can be translated"),
        ({"instruction": 3}, "instruction is '3', but text is wanted"),
    ],
)
def test_records_that_are_none_are_refused_in_words(body: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        units_of(body)


def test_a_second_try_is_another_request_that_says_what_was_wrong() -> None:
    (unit,) = units_of(ROW)
    first = make_request(unit, 1, language="pt", teacher=TEACHER)
    second = make_request(unit, 2, language="pt", teacher=TEACHER, after="cut_off")
    assert first.digest != second.digest
    assert "Portuguese" in first.prompt
    assert "was cut off" in second.prompt
    assert first.max_tokens == TEACHER.max_tokens, "a chat model may think first"
    continued = make_request(unit, 1, language="pt", teacher=TEACHER.model_copy(update={"api": "completions"}))
    assert continued.max_tokens < TEACHER.max_tokens


def test_white_space_around_a_text_stays() -> None:
    body = {"instruction": "\n  Write it down now.\n\n", "output": ""}
    found = verdict("<<<1>>>\nEscreva isto agora mesmo.\n", body=body)
    assert found.texts == ("\n  Escreva isto agora mesmo.\n\n",)
