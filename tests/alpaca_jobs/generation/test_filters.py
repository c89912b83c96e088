"""Every filter of Alpaca drops what it is for, and nothing next to it."""

from __future__ import annotations

import string

import pytest

from alpaca_jobs.generation.filters import BANNED_WORDS, FILTERS, drop_reason
from alpaca_jobs.generation.parse import ParsedTask


def _reason(instruction: str, output: str = "Fine.") -> str | None:
    return drop_reason(ParsedTask(0, instruction, "", output))


def test_length_is_counted_in_words() -> None:
    assert _reason("Name three fruits") == "too_short"
    assert _reason("") == "too_short"
    assert _reason("Name three sour fruits") is None
    assert _reason(" ".join(["word"] * 150)) is None
    assert _reason(" ".join(["word"] * 151)) == "too_long"


@pytest.mark.parametrize("word", BANNED_WORDS)
def test_things_a_text_model_cannot_make_are_banned_as_whole_words(word: str) -> None:
    assert _reason(f"Please describe the {word} for me") == "banned_word"
    assert _reason(f"Please describe the {word.upper()}, for me") == "banned_word"
    assert _reason(f"Please describe the x{word}x for me") is None


def test_words_that_only_contain_a_banned_one_pass() -> None:
    assert _reason("Write a paragraph about photography and musicians") is None


def test_programs_are_dropped_only_at_the_start_and_as_spelled() -> None:
    assert _reason("Write a program that adds numbers") == "write_a_program"
    assert _reason("Write a programme for the evening") == "write_a_program"  # as upstream: a prefix, not a word
    assert _reason("Please write a program that adds numbers") is None
    assert _reason("write a program that adds numbers") is None


@pytest.mark.parametrize("mark", string.punctuation)
def test_every_punctuation_mark_at_the_start_is_caught(mark: str) -> None:
    assert _reason(f"{mark}Name three sour fruits") == "starts_with_punctuation"


def test_only_the_first_character_must_be_ascii() -> None:
    assert _reason("Écris trois petits textes") == "starts_with_non_ascii"
    assert _reason("“Quoted” words come first here") == "starts_with_non_ascii"
    assert _reason("Name three cafés in Köln") is None
    assert _reason("3 sour fruits, which ones") is None


def test_a_row_without_output_is_dropped() -> None:
    assert _reason("Name three sour fruits", output="") == "no_output"


def test_reasons_have_names_of_their_own() -> None:
    assert len({reason for reason, _ in FILTERS}) == len(FILTERS) == 7
