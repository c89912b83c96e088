"""Exact ROUGE-L dedupe: is a new instruction too similar to any kept one? Streaming, in order, rouge_score's decisions.

    index = SimilarityIndex(threshold=0.7)
    index.add("a seed instruction")
    if index.offer("a new instruction") is None: ...   # kept, and compared with from now on

A duplicate is F > threshold with any text added or kept before. Texts are compared as rouge_score's tokens, each token
one character of a string, so that rapidfuzz's bit-parallel LCS (exact) can work on plain strings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from alpaca_jobs.generation.rouge import f_measure, least_lcs, tokenize

_SURROGATES = range(0xD800, 0xE000)  # code points that are not characters; skipped, so that strings stay valid


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The texts nearest to one text: (text, F) best first, earlier first among equals; and the mean F with all."""

    nearest: tuple[tuple[str, float], ...]
    average: float


class SimilarityIndex:
    """The texts kept so far. Not thread-safe; one process owns the order of a stream."""

    def __init__(self, threshold: float = 0.7) -> None:
        """Make an empty index; `threshold` is between 0 and 1."""
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, but ROUGE-L F is between 0 and 1")
        self._threshold = threshold
        self._vocabulary: dict[str, str] = {}
        self._texts: list[str] = []
        self._encoded: list[str] = []

    def __len__(self) -> int:
        """Return how many texts are compared with."""
        return len(self._texts)

    def add(self, text: str) -> None:
        """Add a text without asking whether it is a duplicate (seeds, and rows kept by an earlier attempt)."""
        self._texts.append(text)
        self._encoded.append(self._encode(text))

    def add_all(self, texts: Iterable[str]) -> None:
        """Add many texts as `add` does."""
        for text in texts:
            self.add(text)

    def duplicate_of(self, text: str) -> int | None:
        """Return the place of the first text that this one duplicates (in the order they were added), or None."""
        query = self._encode(text)
        if not query or not self._encoded:
            return None
        for place, lcs in enumerate(self._lcs_with_all(query)):
            if lcs and lcs >= least_lcs(len(query), len(self._encoded[place]), self._threshold):
                return place
        return None

    def offer(self, text: str) -> int | None:
        """Add a text unless it is a duplicate; return the place of what it duplicates, or None if it was added."""
        duplicate = self.duplicate_of(text)
        if duplicate is None:
            self.add(text)
        return duplicate

    def neighbours(self, text: str, *, count: int = 10) -> Neighbours:
        """Return the `count` most similar texts and the mean similarity with all; scores are rouge_score's floats."""
        if not self._texts:
            return Neighbours((), 0.0)
        query = self._encode(text)
        scores = [
            f_measure(int(lcs), len(query), len(other))
            for lcs, other in zip(self._lcs_with_all(query), self._encoded, strict=True)
        ]
        best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count]
        return Neighbours(tuple((self._texts[place], scores[place]) for place in best), sum(scores) / len(scores))

    def _encode(self, text: str) -> str:
        vocabulary = self._vocabulary
        return "".join([vocabulary.get(token) or self._new_character(token) for token in tokenize(text)])

    def _new_character(self, token: str) -> str:
        number = len(self._vocabulary) + 1
        if number >= _SURROGATES.start:
            number += len(_SURROGATES)
        character = chr(number)
        self._vocabulary[token] = character
        return character

    def _lcs_with_all(self, query: str) -> Any:
        from rapidfuzz.distance import LCSseq
        from rapidfuzz.process import cdist

        return cdist([query], self._encoded, scorer=LCSseq.similarity)[0].tolist()
