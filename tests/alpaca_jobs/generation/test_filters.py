"""Every filter of Alpaca drops what it is for, and nothing next to it."""

from __future__ import annotations

import string
from typing import Any

import pytest

from alpaca_jobs.generation.filters import FILTERS, drop_reason
from alpaca_jobs.generation.parse import ParsedTask
from alpaca_jobs.spec import DataSpec
from alpaca_jobs.spec_filters import ALPACA_WORDS, FiltersSpec


def _reason(instruction: str, output: str = "Fine.", **filters: Any) -> str | None:
    return drop_reason(ParsedTask(0, instruction, "", output), FiltersSpec.model_validate(filters))


def test_length_is_counted_in_words() -> None:
    assert _reason("Name three fruits") == "too_short"
    assert _reason("") == "too_short"
    assert _reason("Name three sour fruits") is None
    assert _reason(" ".join(["word"] * 150)) is None
    assert _reason(" ".join(["word"] * 151)) == "too_long"


@pytest.mark.parametrize("word", ALPACA_WORDS)
def test_things_a_text_model_cannot_make_are_banned_as_whole_words(word: str) -> None:
    assert _reason(f"Please describe the {word} for me") == "banned_word"
    assert _reason(f"Please describe the {word.upper()}, for me") == "banned_word"
    assert _reason(f"Please describe the x{word}x for me") is None


def test_words_that_only_contain_a_banned_one_pass() -> None:
    assert _reason("Write a paragraph about photography and musicians") is None


def test_programs_are_dropped_only_at_the_start_and_as_spelled() -> None:
    assert _reason("Write a program that adds numbers") == "banned_start"
    assert _reason("Write a programme for the evening") == "banned_start"  # as upstream: a prefix, not a word
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


def test_every_filter_is_as_the_job_says() -> None:
    assert _reason("Name fruits", min_words=2) is None
    assert _reason("Name three sour fruits now", max_words=4) == "too_long"
    assert _reason("Describe the picture for me", banned_words=["go to", "c++"]) is None
    assert _reason("Explain C++ to me please", banned_words=["go to", "c++"]) == "banned_word"
    assert _reason("Describe the picture for me", banned_words=[]) is None
    assert _reason("Write a program that adds numbers", banned_starts=[]) is None
    assert _reason("Draft a poem about the sea", banned_starts=["Draft", "Sing"]) == "banned_start"
    assert _reason("(Optional) name three sour fruits", punctuation_start="keep") is None
    assert _reason("Écris trois petits textes", non_ascii_start="keep") is None
    assert _reason("Name three sour fruits", output="", empty_output="keep") is None


def test_each_recipe_has_the_words_that_it_was_published_with() -> None:
    alpaca = DataSpec.model_validate({"teacher": "offline"}).filters
    original = DataSpec.model_validate({"teacher": "offline", "recipe": "self-instruct"}).filters
    assert set(alpaca.banned_words) - set(original.banned_words) == {"video", "audio", "music", "flowchart", "diagram"}
    shorter = {"teacher": "offline", "recipe": "self-instruct", "filters": {"max_words": 20}}
    assert DataSpec.model_validate(shorter).filters == original.model_copy(update={"max_words": 20})
    again = DataSpec.model_validate(shorter)
    assert DataSpec.model_validate(again.model_dump(by_alias=True)) == again
