"""What a file of rows is like, in numbers: lengths, similarity, verbs and what they act on. Pure; for the data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alpaca_jobs.data.rows import Row
from alpaca_jobs.data.verb_noun import is_question, verb_and_noun
from alpaca_jobs.generation.similarity import SimilarityIndex

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SIMILARITY_BINS = 20
SIMILARITY_SAMPLE = 2000
"""Rows whose nearest other row is looked for; each is compared with all, about 0.1 us a pair."""
NUM_VERBS, NUM_OBJECTS = 20, 4


@dataclass(frozen=True)
class Lengths:
    """Words per row of one field, of the rows where it is not empty."""

    name: str
    num_rows: int
    quantiles: tuple[int, ...]
    histogram: tuple[int, ...]
    bin_words: int


@dataclass(frozen=True)
class DataFacts:
    """A file of rows in numbers.

    Attributes:
        lengths: of instruction, input and output.
        similarity: counts of the ROUGE-L F with the nearest other row, in SIMILARITY_BINS bins from 0 to 1.
        num_compared: rows that stand behind `similarity`.
        verbs: (verb, rows, ((object, rows), ...)), the most frequent first; by rule (verb_noun.py).
        num_questions: instructions that begin as a question does, or end as one.
    """

    num_rows: int
    num_with_input: int
    num_instructions: int
    lengths: tuple[Lengths, ...]
    similarity: tuple[int, ...]
    num_compared: int
    verbs: tuple[tuple[str, int, tuple[tuple[str, int], ...]], ...]
    num_questions: int


def measure_rows(rows: Sequence[Row]) -> DataFacts:
    """Return the facts about at least one row."""
    similarity, num_compared = _similarity([row.instruction for row in rows])
    verbs, num_questions = _verbs([row.instruction for row in rows])
    return DataFacts(
        num_rows=len(rows),
        num_with_input=sum(bool(row.input) for row in rows),
        num_instructions=len({row.instruction for row in rows}),
        lengths=(
            _lengths("instruction", rows, lambda row: row.instruction),
            _lengths("input", rows, lambda row: row.input),
            _lengths("output", rows, lambda row: row.output),
        ),
        similarity=similarity,
        num_compared=num_compared,
        verbs=verbs,
        num_questions=num_questions,
    )


def _lengths(name: str, rows: Sequence[Row], text: Callable[[Row], str]) -> Lengths:
    counts = sorted(len(text(row).split()) for row in rows if text(row).strip())
    if not counts:
        return Lengths(name, 0, (0,) * len(QUANTILES), (), 1)
    quantiles = tuple(counts[min(len(counts) - 1, int(share * len(counts)))] for share in QUANTILES)
    bin_words = max(1, -(-counts[min(len(counts) - 1, int(0.99 * len(counts)))] // 30))
    histogram = Counter(min(count // bin_words, 30) for count in counts)  # the last bin holds the longest percent
    return Lengths(
        name, len(counts), quantiles, tuple(histogram[place] for place in range(max(histogram) + 1)), bin_words
    )


def _similarity(texts: Sequence[str]) -> tuple[tuple[int, ...], int]:
    """Compare an even sample of the instructions, each once, with all others."""
    distinct = list(dict.fromkeys(texts))
    index = SimilarityIndex()
    index.add_all(distinct)
    step = max(1, len(distinct) // SIMILARITY_SAMPLE)
    bins = [0] * SIMILARITY_BINS
    chosen = range(0, len(distinct), step) if len(distinct) > 1 else range(0)
    for place in chosen:
        nearest = index.neighbours(distinct[place], count=2).nearest
        score = next(score for other, score in nearest if other != place)
        bins[min(SIMILARITY_BINS - 1, int(score * SIMILARITY_BINS))] += 1
    return tuple(bins), len(chosen)


def _verbs(texts: Sequence[str]) -> tuple[tuple[tuple[str, int, tuple[tuple[str, int], ...]], ...], int]:
    pairs: dict[str, Counter[str]] = {}
    num_questions = 0
    for text in texts:
        if is_question(text):
            num_questions += 1
        elif (found := verb_and_noun(text)) is not None:
            pairs.setdefault(found[0], Counter())[found[1]] += 1
    top = sorted(pairs.items(), key=lambda pair: (-pair[1].total(), pair[0]))[:NUM_VERBS]
    return tuple((verb, objects.total(), _objects(objects)) for verb, objects in top), num_questions


def _objects(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    named = sorted(((name, count) for name, count in counts.items() if name), key=lambda pair: (-pair[1], pair[0]))
    return tuple(named[:NUM_OBJECTS])
