"""Exact ROUGE-L dedupe: is a new instruction too similar to any kept one? Streaming, in order, rouge_score's decisions.

    index = SimilarityIndex(threshold=0.7)
    index.add_all(seed_instructions)
    index.offer("a new instruction")           # None: kept, and compared with from now on
    for duplicate in index.offer_all(many): ... # the same decisions, thousands of times faster per text

A duplicate is F > threshold with any text added or kept before. prefix_index.py finds the few texts that can be one,
rapidfuzz's bit-parallel LCS (exact) and rouge.py's arithmetic decide. Nothing here is approximate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from alpaca_jobs.generation.prefix_index import (
    Ints,
    Lengths,
    Prefixes,
    Segment,
    Signatures,
    TokenOrder,
    find_pairs,
    find_prefixes,
    sign,
)
from alpaca_jobs.generation.rouge import f_measure
from alpaca_jobs.generation.token_rows import TokenRows

_TAIL = 256  # rows compared one by one before they are sorted into a segment
_SMALL_BLOCK, _LARGE_BLOCK = 512, 8192
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What is nearest to a text: (place, F) best first, the earlier first among equals; and the mean F with all."""

    nearest: tuple[tuple[int, float], ...]
    average: float


@dataclass(frozen=True)
class _Block:
    """Encoded texts that are not in the index (yet)."""

    tokens: Ints
    lengths: Lengths
    signatures: Signatures
    sequences: list[Any]


class SimilarityIndex:
    """The texts kept so far, by place (from 0, in the order they were added). One process owns a stream's order."""

    def __init__(self, threshold: float = 0.7, *, confirm: bool = False) -> None:
        """Make an empty index.

        Args:
            threshold: 0 to 1; a text is a duplicate when its F with an earlier one is greater.
            confirm: ask the rouge_score package itself about every drop (about 30 us each), as a running proof.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}, but ROUGE-L F is between 0 and 1")
        self._threshold = threshold
        self._share = threshold / 2 * (1 - _SLACK)
        self._score = _rouge_score() if confirm else None
        self._rows = TokenRows()
        self._order = TokenOrder(np.empty(0, np.int64))
        self._ordered_rows = 0
        self._segments: list[Segment] = []
        self._num_segmented = 0
        self._tail: list[Any] = []
        self._all: list[Any] = []

    def __len__(self) -> int:
        """Return how many texts are compared with."""
        return len(self._rows)

    def add(self, text: str) -> None:
        """Add a text without asking whether it is a duplicate (seeds, and rows kept by an earlier attempt)."""
        self._append(self._encode([text]))

    def add_all(self, texts: Iterable[str]) -> None:
        """Add many texts as `add` does."""
        for chunk in _batches(iter(texts), lambda: _LARGE_BLOCK):
            self._append(self._encode(chunk))

    def duplicate_of(self, text: str) -> int | None:
        """Return the place of the first text that this one duplicates, or None."""
        block = self._encode([text])
        duplicate = self._find_duplicates(block).get(0)
        self._confirm_drops(block, [duplicate])
        return duplicate

    def duplicates_of(self, texts: Sequence[str]) -> list[int | None]:
        """Return what `duplicate_of` would for each of many texts, which are not compared with each other."""
        if not texts:
            return []
        if self._tail:
            self._flush()
        found = self._find_duplicates(block := self._encode(texts))
        duplicates = [found.get(row) for row in range(len(texts))]
        self._confirm_drops(block, duplicates)
        return duplicates

    def offer(self, text: str) -> int | None:
        """Add a text unless it is a duplicate; return the place of what it duplicates, or None if it was added."""
        block = self._encode([text])
        duplicate = self._find_duplicates(block).get(0)
        if duplicate is None:
            self._append(block)
        self._confirm_drops(block, [duplicate])
        return duplicate

    def offer_all(self, texts: Iterable[str]) -> Iterator[int | None]:
        """Offer texts in order, many at a time; yields for each what `offer` would return.

        Reads ahead by a block (512 to 8,192 texts), so nothing else may be added between two results.
        """
        for chunk in _batches(iter(texts), lambda: min(_LARGE_BLOCK, max(_SMALL_BLOCK, len(self) // 2))):
            yield from self._offer_block(self._encode(chunk))

    def neighbours(self, text: str, *, count: int = 10) -> Neighbours:
        """Return the `count` most similar texts and the mean similarity with all; scores are rouge_score's floats.

        Compares with every text, which no filter can spare: about 0.1 us each.
        """
        if not len(self):
            return Neighbours((), 0.0)
        self._all += self._rows.sequences(np.arange(len(self._all), len(self)))
        block = self._encode([text])
        scores = f_measure(_lcs_with_all(block.sequences[0], self._all), block.lengths[0], self._rows.lengths)
        best = np.argsort(-scores, kind="stable")[:count]
        return Neighbours(tuple((int(place), float(scores[place])) for place in best), float(scores.mean()))

    def _encode(self, texts: Sequence[str]) -> _Block:
        tokens, lengths = self._rows.encode(texts)
        return _Block(tokens, lengths, sign(tokens, lengths), self._rows.sequences_of(tokens, lengths))

    def _append(self, block: _Block) -> None:
        """Add rows; they are in the tail until it is long enough to be sorted."""
        self._rows.append(block.tokens, block.lengths, block.signatures)
        self._tail += block.sequences
        if len(self._tail) >= _TAIL:
            self._flush()

    def _flush(self) -> None:
        """Sort the tail into a segment; from time to time sort everything anew, by how common tokens are by now."""
        if len(self) >= 2 * self._ordered_rows:
            self._order, self._ordered_rows = TokenOrder(self._rows.token_counts), len(self)
            self._segments, self._num_segmented = [], 0
        tokens, lengths = self._rows.slice(self._num_segmented, len(self))
        prefixes = find_prefixes(tokens, lengths, self._order, self._share)
        self._add_segment(Segment.build(prefixes, np.arange(self._num_segmented, len(self))))
        self._tail = []

    def _add_segment(self, segment: Segment) -> None:
        """Add a segment of the newest rows, merging small ones so that there are never more than a few."""
        self._segments.append(segment)
        while len(self._segments) > 1 and 2 * len(self._segments[-1].keys) >= len(self._segments[-2].keys):
            self._segments[-2:] = [Segment.merge(self._segments[-2:])]
        self._num_segmented = len(self)

    def _find_duplicates(self, block: _Block, prefixes: Prefixes | None = None) -> dict[int, int]:
        """Return the first place that each duplicate of a block duplicates, by its row in the block."""
        if self._segments and prefixes is None:
            prefixes = find_prefixes(block.tokens, block.lengths, self._order, self._share)
        mine, indexed = (block.lengths, block.signatures), (self._rows.lengths, self._rows.signatures)
        found: dict[int, int] = {}
        for segment in self._segments:  # each holds later places than the one before
            assert prefixes is not None
            if found:
                is_open = np.ones(len(block.lengths), np.bool_)
                is_open[list(found)] = False
                prefixes = prefixes.of_rows(is_open)
            rows, places = find_pairs(segment, prefixes, mine, indexed, self._share)
            sequences = self._rows.sequences(places)
            for row, place in self._exact(block, rows, sequences, places, self._rows.lengths[places]):
                found[row] = min(place, found.get(row, place))
        if self._tail:
            for row in set(range(len(block.lengths))) - set(found):
                places = np.arange(self._num_segmented, len(self))
                lcs = _lcs_with_all(block.sequences[row], self._tail)
                scores = f_measure(lcs, block.lengths[row], self._rows.lengths[places])
                hits = np.flatnonzero(scores > self._threshold)
                if len(hits):
                    found[row] = int(places[hits[0]])
        return found

    def _exact(
        self, block: _Block, rows: Ints, sequences: Sequence[Any], others: Ints, lengths: Lengths
    ) -> list[tuple[int, int]]:
        """Return the pairs (row, other) that are duplicates, of those given."""
        from rapidfuzz.distance import LCSseq
        from rapidfuzz.process import cpdist

        if not len(rows):
            return []
        lcs = cpdist([block.sequences[row] for row in rows], sequences, scorer=LCSseq.similarity, dtype=np.int32)
        hits = f_measure(lcs, block.lengths[rows], lengths) > self._threshold
        return list(zip(rows[hits].tolist(), others[hits].tolist(), strict=True))

    def _offer_block(self, block: _Block) -> list[int | None]:
        if self._tail or not self._segments:
            self._flush()
        prefixes = find_prefixes(block.tokens, block.lengths, self._order, self._share)
        found = self._find_duplicates(block, prefixes)
        is_new = np.ones(len(block.lengths), np.bool_)
        is_new[list(found)] = False
        kept, firsts = bytearray(is_new), {}
        for row, others in self._pairs_within(block, prefixes.of_rows(is_new)).items():  # in order: others are decided
            first = next((other for other in others if kept[other]), None)
            if first is not None:
                kept[row], firsts[row] = False, first
        is_kept = np.frombuffer(kept, np.bool_)
        place = np.where(is_kept, len(self) - 1 + np.cumsum(is_kept), -1)
        result: list[int | None] = [None] * len(block.lengths)
        for row, duplicate in found.items():
            result[row] = duplicate
        for row, first in firsts.items():
            result[row] = int(place[first])
        self._keep(block, prefixes, place)
        self._confirm_drops(block, result)
        return result

    def _pairs_within(self, block: _Block, prefixes: Prefixes) -> dict[int, list[int]]:
        """Return, for each row, the earlier rows of its own block that it duplicates, in order."""
        segment = Segment.build(prefixes, np.arange(len(block.lengths)))
        mine = (block.lengths, block.signatures)
        rows, others = find_pairs(segment, prefixes, mine, mine, self._share)
        earlier = others < rows
        rows, others = rows[earlier], others[earlier]
        sequences = [block.sequences[other] for other in others]
        pairs: dict[int, list[int]] = {}
        for row, other in self._exact(block, rows, sequences, others, block.lengths[others]):
            pairs.setdefault(row, []).append(other)
        return pairs

    def _keep(self, block: _Block, prefixes: Prefixes, place: Ints) -> None:
        """Add the rows of a block that have a place."""
        kept = place >= 0
        tokens = block.tokens[np.repeat(kept, block.lengths)]
        self._rows.append(tokens, block.lengths[kept], block.signatures[kept])
        self._add_segment(Segment.build(prefixes.of_rows(kept), place))

    def _confirm_drops(self, block: _Block, duplicates: Sequence[int | None]) -> None:
        """Have the rouge_score package itself score every drop of a block, if that was asked for."""
        if self._score is None:
            return
        drops = [(row, place) for row, place in enumerate(duplicates) if place is not None]
        others = self._rows.sequences(np.array([place for _, place in drops], np.int64))
        for (row, place), other in zip(drops, others, strict=True):
            # As lists: it looks each token up a dozen times, and a string makes a new character every time.
            score = self._score(list(block.sequences[row]), list(other)).fmeasure
            assert score > self._threshold, f"rouge_score gives {score} with row {place}, not above {self._threshold}"


def _rouge_score() -> Any:
    from rouge_score.rouge_scorer import _score_lcs  # the very function that Alpaca's script called

    return _score_lcs


def _lcs_with_all(sequence: Any, others: Sequence[Any]) -> Any:
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cdist

    return cdist([sequence], others, scorer=LCSseq.similarity, dtype=np.int32)[0]


def _batches(texts: Iterator[str], size: Any) -> Iterator[list[str]]:
    while chunk := list(islice(texts, size())):
        yield chunk
