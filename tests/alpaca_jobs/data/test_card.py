"""The data card: its numbers are right, its page is well formed, holds no foreign markup and fetches nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from alpaca_jobs.data.card import lineage_of, render_card
from alpaca_jobs.data.facts import SIMILARITY_BINS, measure_rows
from alpaca_jobs.data.rows import Row
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.spec import DataSpec

ROWS = (
    Row("Write a short poem about the sea.", "", "Waves."),
    Row("Please write the poem again.", "Waves.", "Waves, waves."),
    Row("Sort these words by length.", "aa b", "b aa"),
    Row("What is a prime?", "", "A number with two divisors."),
    Row("Sort these words by their length.", "cc d", "d cc"),
    Row("Sort these words by their length.", "ee f", "f ee"),
)


class Balanced(HTMLParser):
    """Fails on a tag that is closed in the wrong place, or not at all."""

    VOID = frozenset(("meta", "!doctype"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> set[str]:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert not {"script", "link", "img", "iframe"} & parser.seen
    assert not re.search(r"(?:src|href|url)\s*[=(]", page)
    assert "nan" not in page.lower().split(">")[0]
    return parser.seen


def test_rows_are_counted_by_fields_questions_and_verbs() -> None:
    facts = measure_rows(ROWS)
    assert (facts.num_rows, facts.num_with_input, facts.num_instructions, facts.num_questions) == (6, 4, 5, 1)
    assert facts.verbs[0] == ("sort", 3, (("words", 3),))
    assert facts.verbs[1] == ("write", 2, (("poem", 2),))
    assert [one.num_rows for one in facts.lengths] == [6, 4, 6]
    assert facts.lengths[0].quantiles[2] in (5, 6)
    assert all(sum(one.histogram) == one.num_rows for one in facts.lengths)


def test_similarity_is_that_with_the_nearest_other_instruction() -> None:
    facts = measure_rows(ROWS)
    assert facts.num_compared == sum(facts.similarity) == 5
    high = 2 * 5 / 11  # "sort these words by (their) length"
    assert facts.similarity[int(high * SIMILARITY_BINS)] == 2


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[3:4], (Row("", "", ""),) * 2, (Row("Ordne das.", "", "x"),)])
def test_any_rows_have_a_page_that_is_whole_and_fetches_nothing(rows: tuple[Row, ...]) -> None:
    page = render_card("Card", measure_rows(rows), {"rows": "here"}, rows[:3])
    assert "svg" in check_page(page) or len(rows) == 1


def test_the_built_in_seeds_make_two_full_rings() -> None:
    rows = [Row(seed.instruction, seed.input, seed.output) for seed in load_seed_tasks("builtin")]
    page = render_card("Seeds", measure_rows(rows), {}, rows[:2])
    check_page(page)
    assert page.count("<path") > 40


def test_nothing_in_a_row_becomes_markup() -> None:
    evil = Row('</pre><script>alert("x")</script> & go', "<b>", "</svg>")
    page = render_card("<i>title</i>", measure_rows([evil, evil]), {"<u>": "</td>"}, [evil])
    check_page(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"teacher": "offline"}, "demo data composed by rule"),
        ({"teacher": {"model": "gpt-4o-mini"}}, "whoever runs api.openai.com"),
        ({"teacher": {"model": "m", "base_url": "http://127.0.0.1:1/v1"}}, "whoever runs 127.0.0.1"),
        ({"from": "rows.json"}, "not known here"),
    ],
)
def test_lineage_says_whose_terms_hold(spec: dict[str, Any], words: str) -> None:
    lineage = lineage_of(DataSpec.model_validate(spec))
    assert words in lineage["terms"]
    assert ("seed tasks" in lineage) == ("teacher" in spec)
