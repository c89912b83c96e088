"""Dedupe decides exactly as rouge_score does: on single pairs, and on whole streams against the plain way."""

from __future__ import annotations

import random
import secrets
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score import tokenize as tokenizers
from rouge_score.rouge_scorer import RougeScorer, _score_lcs

from alpaca_jobs.generation.rouge import END, f_measure, token_bytes
from alpaca_jobs.generation.similarity import SimilarityIndex
from alpaca_jobs.generation.token_rows import TokenRows

SCORER = RougeScorer(["rougeL"], use_stemmer=False)
THRESHOLDS = st.sampled_from([0.7, 0.5, 0.3, 0.0, 0.05, 0.6, 2 / 3, 0.9, 0.999, 1.0])
UNICODE = st.text(max_size=60)
# Few words, so that repeats and long common subsequences are common; some with digits, marks and odd letters.
ODD_WORDS = ("a", "b", "c", "the", "The", "x1", "2023", "don't", "naïve", "K", "İ", "ß", "—", "re-do", "٣")
WORDS = st.sampled_from(ODD_WORDS)
SENTENCES = st.lists(WORDS, max_size=24).map(" ".join)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = SCORER._tokenizer.tokenize(text)
    return tokens


def _rouge(target: str, prediction: str) -> float:
    return float(SCORER.score(target, prediction)["rougeL"].fmeasure)


def tokenize(texts: list[str]) -> list[str]:
    return token_bytes(texts).decode("ascii").split()


@given(st.lists(st.one_of(UNICODE, SENTENCES), max_size=5))
@settings(deadline=None)
@example(["\u0130stanbul \u212a \u017f \u01c5 \u0391\u03a3 \u2028x\x00y\ud800z", "a\x00b\x1ec", "\x00", "\u03a3"])
def test_tokens_are_rouge_scores_tokens(texts: list[str]) -> None:
    assert tokenize(texts) == [token for text in texts for token in [*_tokens(text), END]]


def test_every_character_is_part_of_a_token_exactly_where_rouge_score_says_so() -> None:
    """All of Unicode, each between two letters."""
    for begin in range(0, 0x110000, 0x1000):
        text = " ".join(f"a{chr(code)}b" for code in range(begin, begin + 0x1000))
        assert tokenize([text]) == [*tokenizers.tokenize(text, None), END]


@given(st.one_of(UNICODE, SENTENCES), st.one_of(UNICODE, SENTENCES), THRESHOLDS)
@settings(max_examples=400, deadline=None)
def test_a_pair_is_decided_as_rouge_score_decides_it(earlier: str, text: str, threshold: float) -> None:
    index = SimilarityIndex(threshold)
    index.add(earlier)
    is_duplicate = _rouge(text, earlier) > threshold
    assert (index.duplicate_of(text) == 0) == is_duplicate
    assert index.neighbours(text).nearest == ((0, _rouge(text, earlier)),)


def test_scores_at_the_edge_have_rouge_scores_bits() -> None:
    """Every pair of lengths to 60 and every LCS: where F is 0.7, 0.35 or 2/3, rounding alone decides."""
    at_the_edge = 0
    for m in range(1, 61):
        for n in range(1, 61):
            lcs = np.arange(min(m, n) + 1)
            ours = f_measure(lcs, m, n)
            for common, score in zip(lcs.tolist(), ours.tolist(), strict=True):
                precision, recall = common / n, common / m
                expected = 2 * precision * recall / (precision + recall) if common else 0.0
                assert score == expected
                at_the_edge += 20 * common == 7 * (m + n)
    assert at_the_edge > 60


@pytest.mark.parametrize("threshold", [0.7, 0.35, 0.5, 2 / 3])
def test_both_sides_of_the_edge_are_decided_as_rouge_score_does(threshold: float) -> None:
    outcomes = set()
    for m in range(1, 24):
        for n in range(m, 24):
            for common in {int(threshold * (m + n) / 2) + step for step in (-1, 0, 1, 2)}:
                if not 0 < common <= m:
                    continue
                one = " ".join(["s"] * common + ["left"] * (m - common))
                two = " ".join(["right"] * (n - common) + ["s"] * common)
                index = SimilarityIndex(threshold)
                (first, second) = index.offer_all([one, two])
                expected = _score_lcs(two.split(), one.split()).fmeasure > threshold
                assert first is None
                assert (second == 0) == expected
                outcomes.add(expected)
    assert outcomes == {True, False}


@pytest.mark.slow
def test_two_hundred_thousand_pairs_have_rouge_scores_floats_and_are_decided_by_them() -> None:
    texts = _stream(14, 400, num_words=60, longest=18)
    texts += ["", "w1", "W1 w1 w1", "w1!w1", "12 12 12 1", "\u0130 K \u00e9 1"]
    texts += [_odd(text) for text in _stream(15, 50, num_words=len(ODD_WORDS), longest=12)]
    # 10 words of which two texts share 7: F is exactly 0.7.
    texts += [" ".join(f"s{n}" if n < 7 else f"t{number}x{n}" for n in range(10)) for number in range(50)]
    tokens = [_tokens(text) for text in texts]
    index = SimilarityIndex()
    index.add_all(texts)
    pairs = at_the_edge = duplicates = 0
    expected: list[list[int | None]] = [[] for _ in texts]  # by place in the index, then by text
    for text, mine in zip(texts, tokens, strict=True):
        scores = dict(index.neighbours(text, count=len(texts)).nearest)
        for place, theirs in enumerate(tokens):
            score = _score_lcs(mine, theirs).fmeasure
            assert scores[place] == score
            expected[place].append(0 if score > 0.7 else None)
            at_the_edge += abs(scores[place] - 0.7) < 1e-9
            pairs += 1
    assert pairs > 200_000
    for kept, decisions in zip(texts, expected, strict=True):  # the way that decides without a float of most pairs
        alone = SimilarityIndex(0.7)
        alone.add(kept)
        assert alone.duplicates_of(texts) == decisions, kept
        duplicates += sum(decision is not None for decision in decisions)
    assert 1000 < duplicates < pairs / 2
    assert at_the_edge > 10


def _brute_force(texts: Sequence[str], threshold: float, earlier: Sequence[str] = ()) -> list[int | None]:
    """Alpaca's loop, with rapidfuzz's LCS in place of rouge_score's: compare everything with everything kept."""
    ids: dict[str, int] = {}
    kept: list[str] = []
    lengths: list[int] = []
    decisions: list[int | None] = []
    for number, text in enumerate([*earlier, *texts]):
        query = "".join(chr(ids.setdefault(token, len(ids)) + 1) for token in _tokens(text))
        duplicate = None
        if kept and number >= len(earlier):
            lcs = cdist([query], kept, scorer=LCSseq.similarity, dtype=np.int32)[0]
            hits = np.flatnonzero(f_measure(lcs, len(query), np.array(lengths)) > threshold)
            duplicate = int(hits[0]) if len(hits) else None
        if duplicate is None:
            kept.append(query)
            lengths.append(len(query))
        if number >= len(earlier):
            decisions.append(duplicate)
    return decisions


def _odd(text: str) -> str:
    """The same text with its commonest words changed for odd ones: marks, digits, letters that are not ASCII's."""
    return " ".join(ODD_WORDS[int(word[1:])] if int(word[1:]) < len(ODD_WORDS) else word for word in text.split())


@pytest.mark.slow
def test_a_stream_of_three_thousand_rows_is_decided_as_by_rouge_score_itself() -> None:
    """Alpaca's loop with rouge_score's own comparison, spared only where too few words are there at all for 0.7.

    Another stream every time.
    """
    seed = secrets.randbelow(2**32)
    texts = [_odd(text) for text in _stream(seed, 3000, num_words=400, longest=11)]
    kept: list[tuple[list[str], Counter[str]]] = []
    expected: list[int | None] = []
    for text in texts:
        mine = _tokens(text)
        bag, duplicate = Counter(mine), None
        for place, (theirs, words) in enumerate(kept):
            both = len(mine) + len(theirs)
            if 20 * min(len(mine), len(theirs)) < 7 * both or 20 * (bag & words).total() < 7 * both:
                continue
            if _score_lcs(mine, theirs).fmeasure > 0.7:
                duplicate = place
                break
        expected.append(duplicate)
        if duplicate is None:
            kept.append((mine, bag))
    assert list(SimilarityIndex(0.7).offer_all(texts)) == expected, f"seed {seed}"
    assert 1000 < len(kept) < 2500, f"seed {seed}"


def _stream(seed: int, count: int, *, num_words: int, longest: int) -> list[str]:
    """Sentences over a small vocabulary, half of them earlier ones with a few words changed."""
    rng = random.Random(seed)
    words = [f"w{n}" for n in range(num_words)]
    weights = [1 / (n + 3) for n in range(num_words)]
    stream: list[list[str]] = []
    for _ in range(count):
        if stream and rng.random() < 0.5:
            text = list(rng.choice(stream))
            for _ in range(rng.randrange(1, 6)):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randrange(2)] = rng.choices(words, weights, k=rng.randrange(2))
        else:
            text = rng.choices(words, weights, k=rng.randrange(longest))
        stream.append(text)
    return [" ".join(text) for text in stream]


@pytest.mark.parametrize(
    ("count", "num_words", "longest", "threshold"),
    [
        (3000, 2000, 25, 0.7),
        (3000, 300, 30, 0.7),
        (1500, 30, 12, 0.7),
        (800, 2000, 60, 0.5),
        (1500, 500, 8, 0.9),
        (400, 100, 200, 0.7),
        (800, 1000, 20, 0.3),
        (1000, 4, 12, 0.95),
    ],
)
def test_whole_streams_are_decided_as_by_brute_force(
    count: int, num_words: int, longest: int, threshold: float
) -> None:
    """Other streams every time."""
    seed = secrets.randbelow(2**32)
    texts = _stream(seed, count, num_words=num_words, longest=longest)
    expected = _brute_force(texts, threshold)
    assert list(SimilarityIndex(threshold).offer_all(texts)) == expected, f"seed {seed}"
    assert sum(place is not None for place in expected) > count / 12, f"seed {seed}"


@given(st.lists(st.one_of(SENTENCES, UNICODE), max_size=120), THRESHOLDS, st.integers(0, 60), st.data())
@settings(max_examples=100, deadline=None)
def test_any_mixture_of_calls_gives_the_same_decisions(
    texts: list[str], threshold: float, num_earlier: int, data: Any
) -> None:
    """Seeds first, then single offers and blocks in any mixture: as one brute-force stream."""
    earlier, rest = texts[:num_earlier], texts[num_earlier:]
    index = SimilarityIndex(threshold)
    index.add_all(earlier)
    decisions: list[int | None] = []
    while len(decisions) < len(rest):
        chunk = rest[len(decisions) : len(decisions) + data.draw(st.integers(1, 30))]
        if data.draw(st.booleans()):
            decisions += index.offer_all(chunk)
        else:
            decisions += [index.offer(text) for text in chunk]
    assert decisions == _brute_force(rest, threshold, earlier)


def test_single_offers_and_blocks_agree_past_every_size_of_segment() -> None:
    texts = _stream(9, 1300, num_words=800, longest=20)
    one_by_one = SimilarityIndex()
    decisions = [one_by_one.offer(text) for text in texts]
    assert decisions == list(SimilarityIndex().offer_all(texts)) == _brute_force(texts, 0.7)
    kept = [text for text, duplicate in zip(texts, decisions, strict=True) if duplicate is None]
    again = SimilarityIndex()
    again.add_all(kept)
    assert len(again) == len(one_by_one) == len(kept)
    assert [again.duplicate_of(text) for text in texts[:200]] == [one_by_one.duplicate_of(text) for text in texts[:200]]


def test_confirming_asks_rouge_score_about_every_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def score(target: Any, prediction: Any) -> Any:
        asked.append((target, prediction))
        return _score_lcs(target, prediction)

    monkeypatch.setattr("rouge_score.rouge_scorer._score_lcs", score)
    texts = _stream(10, 800, num_words=500, longest=20)
    decisions = list(SimilarityIndex(confirm=True).offer_all(texts))
    assert len(asked) == sum(place is not None for place in decisions) > 200
    single = SimilarityIndex(confirm=True)
    assert [single.offer(text) for text in texts] == decisions


def test_more_tokens_than_unicode_has_characters_change_nothing() -> None:
    """The first rows are strings, later ones lists of numbers; both are compared with each other."""
    texts = _stream(11, 900, num_words=600, longest=20)
    index = SimilarityIndex()
    index._rows = TokenRows(max_characters=300)
    assert list(index.offer_all(texts)) == _brute_force(texts, 0.7)
    single = SimilarityIndex()
    single._rows = TokenRows(max_characters=300)
    assert [single.offer(text) for text in texts] == _brute_force(texts, 0.7)
    rows = TokenRows()
    rows.encode([" ".join(map(str, range(0x11000)))])
    tokens, lengths = rows.encode([f"1 {0xD7FF} {0xD800} {0x10FFF}"])
    (text,) = rows.sequences_of(tokens, lengths)
    assert [ord(character) for character in text] == [1, 0xD7FF, 0xE000, 0x10FFF + 0x800], "no surrogates"


def test_texts_longer_than_the_index_can_count_are_compared_all_the_same() -> None:
    rng = random.Random(12)
    long = [rng.choice(string.ascii_lowercase) + str(rng.randrange(50)) for _ in range(67_000)]
    changed = list(long)
    for place in range(0, len(long), 4):
        changed[place] = "zz"
    other = [f"q{word}" for word in long]
    index = SimilarityIndex()
    assert list(index.offer_all([" ".join(words) for words in (long, changed, other, other[:40_000])])) == [
        None,
        0,
        None,
        1,
    ]


def test_neighbours_are_rouge_scores_floats_best_first() -> None:
    texts = _stream(13, 60, num_words=40, longest=15)
    index = SimilarityIndex()
    assert index.neighbours("w1 w2").nearest == ()
    index.add_all(texts[:-1])
    found = index.neighbours(texts[-1], count=7)
    scores = [_rouge(texts[-1], text) for text in texts[:-1]]
    best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:7]
    assert found.nearest == tuple((place, scores[place]) for place in best)
    assert found.average == pytest.approx(sum(scores) / len(scores))


def test_empty_texts_are_never_duplicates() -> None:
    index = SimilarityIndex(0.0)
    assert list(index.offer_all(["", "...", "word", "", "word"])) == [None, None, None, None, 2]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="ROUGE-L F is between 0 and 1"):
        SimilarityIndex(threshold)
