"""The data card: its numbers are right, its page is well formed, holds no foreign markup and fetches nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from alpaca_jobs.data.card import make_card, render_card
from alpaca_jobs.data.facts import SIMILARITY_BINS, measure_rows
from alpaca_jobs.data.lineage import known_terms, lineage_of, seeds_digest
from alpaca_jobs.data.rows import Row
from alpaca_jobs.data.verb_noun import is_question, verb_and_noun
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
    ("spec", "key", "words"),
    [
        ({"teacher": "offline"}, "terms", "demo data composed by rule"),
        ({"teacher": {"model": "gpt-4o-mini"}}, "terms", "whoever runs api.openai.com"),
        ({"teacher": {"model": "gpt-4o-mini"}}, "terms", "compete with OpenAI (openai.com/policies/terms-of-use, eff"),
        ({"teacher": {"model": "m", "base_url": "http://127.0.0.1:1/v1"}}, "terms", "whoever runs 127.0.0.1"),
        ({"teacher": "offline"}, "licence of the seed tasks", "Apache-2.0"),
        ({"teacher": "offline", "seed_tasks": "/home/me/s.jsonl"}, "licence of the seed tasks", "not stated"),
        (
            {"teacher": "offline", "seed_tasks": "/home/me/s.jsonl", "licence": "CC0"},
            "licence of the seed tasks",
            "CC0",
        ),
        ({"from": "/home/me/rows.json"}, "licence of the rows", "not stated"),
        ({"from": "/home/me/rows.json", "licence": "CC-BY-NC-4.0"}, "licence of the rows", "CC-BY-NC-4.0"),
    ],
)
def test_lineage_says_whose_terms_hold(spec: dict[str, Any], key: str, words: str) -> None:
    lineage = lineage_of(DataSpec.model_validate(spec))
    assert words in lineage[key]
    assert "/home/me" not in str(lineage)  # nobody else's business


@pytest.mark.parametrize(
    ("model", "host", "words"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", "10.0.0.1", "forbids improving any other large language model"),
        ("meta-llama/Llama-3.1-8B-Instruct", "10.0.0.1", '"Llama" at the beginning'),
        ("gemini-2.0-flash", "generativelanguage.googleapis.com", "compete with them"),
    ],
)
def test_known_terms_are_named_with_source_and_date(model: str, host: str, words: str) -> None:
    (told,) = known_terms(model, host)
    assert words in told
    assert re.search(r"\(.*\d{4}-\d{2}-\d{2}", told)


def test_unknown_teachers_have_no_known_terms() -> None:
    assert known_terms("Qwen/Qwen2.5-7B-Instruct", "127.0.0.1") == []
    assert known_terms("gpt-4o-mini", "api.openai.com.example.org") == []


def test_the_digest_of_seeds_is_of_their_words() -> None:
    seeds = load_seed_tasks("builtin")
    lineage = lineage_of(DataSpec.model_validate({"teacher": "offline"}), seeds)
    assert seeds_digest(seeds) in lineage["seed tasks"]
    assert f"{len(seeds)} tasks" in lineage["seed tasks"]
    assert seeds_digest(seeds) != seeds_digest(seeds[1:])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write a short story about dogs.", ("write", "story")),
        ("Please briefly describe the water cycle", ("describe", "cycle")),
        ("Given a list of numbers, find the largest even number.", ("find", "number")),
        ("Come up with three creative names for a cafe.", ("come", "names")),
        ("Write a note apologizing to a neighbor.", ("write", "note")),
        ("My father loves trains. Suggest three gifts.", ("suggest", "gifts")),
        ("Imagine you are a pilot. Tell a joke.", ("tell", "joke")),
        ("Explain why the sky is blue.", ("explain", "")),
        ("Pull every date out of this paragraph.", ("pull", "date")),
        ("The following text is long.", None),
        ("Ordnen", ("ordnen", "")),
        ("", None),
        ("...", None),
    ],
)
def test_the_verb_of_an_order_and_what_it_acts_on(text: str, found: tuple[str, str] | None) -> None:
    assert verb_and_noun(text) == found


@pytest.mark.parametrize("text", ["What is a prime?", "In which year was it built", "Is this spam? Answer yes or no."])
def test_questions_are_no_orders(text: str) -> None:
    assert is_question(text) == (text != "In which year was it built")
    assert not is_question(text) or verb_and_noun(text) is None


def test_a_card_shows_rows_from_all_over() -> None:
    rows = [Row(f"Write poem {number}.", "", "x") for number in range(40)]
    page = make_card("Card", rows, {})
    check_page(page)
    assert page.count("<pre>") == 5
    assert "Write poem 32." in page
