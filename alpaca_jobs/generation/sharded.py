"""Dedupe over several processes, with the very decisions of one: the index is shared out, the order is not.

Every shard holds some ranges of the kept texts. A block of candidates is put to all shards at once; what none of them
knows is settled in order by an index of this process, which also holds what the block before it kept. So the shards
can look the next block up while this process settles the one at hand, and no pair goes uncompared:

    block k against all kept up to block k - 2: the shards; against block k - 1 and itself: here

The answer to a candidate is the first kept text that it duplicates, as in SimilarityIndex.offer_all. Where shards run
is the caller's matter (Ray's actors: cluster/node/dedupe_shards.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from alpaca_jobs.generation.similarity import SimilarityIndex

FIRST_BLOCK, LARGEST_BLOCK = 512, 16_384
"""Texts per block: larger blocks mean fewer rounds, smaller ones less work in this process."""


class Shards(Protocol):
    """Several `Shard` objects, each in a place of its own; calls to one of them run in the order they were made."""

    @property
    def count(self) -> int:
        """How many there are."""

    def call(self, shard: int, method: str, *args: Any) -> Any:
        """Start a call of one shard's method; returns what `result` takes."""

    def result(self, call: Any) -> Any:
        """The value of a call, waited for; what it raised is raised."""


class Shard:
    """Some of the kept texts, under their places in the whole."""

    def __init__(self, threshold: float) -> None:
        """Start empty; `threshold` as SimilarityIndex has it."""
        self._index = SimilarityIndex(threshold)
        self._places: list[int] = []

    def duplicates_of(self, texts: Sequence[str]) -> list[int | None]:
        """Return, for each text, the first place here that it duplicates, or None."""
        found = self._index.duplicates_of(texts)
        return [None if place is None else self._places[place] for place in found]

    def keep(self, texts: Sequence[str], first_place: int) -> None:
        """Add texts whose places count from `first_place`."""
        self._index.add_all(texts)
        self._places.extend(range(first_place, first_place + len(texts)))


def offer_all_sharded(
    texts: Iterable[str], shards: Shards, *, threshold: float, against: Sequence[str] = ()
) -> Iterator[int | None]:
    """Offer texts in order; yields for each what SimilarityIndex.offer_all would.

    Args:
        texts: read ahead by two blocks.
        shards: empty ones, made with the same threshold.
        against: texts that count as kept already, at the first places.
    """
    keeping = _share_out(shards, against)
    next_place, turn = len(against), len(keeping)
    before: list[str] = []  # what the block before kept; the shards that are asked now do not know it yet
    blocks = _blocks(iter(texts))
    block = next(blocks, None)
    asked = _ask(shards, block or ())
    while block is not None:
        following = next(blocks, None)
        asked_next = _ask(shards, following or ())
        known = _first_places([shards.result(call) for call in asked])
        survivors = [row for row, place in enumerate(known) if place is None]
        index = SimilarityIndex(threshold)
        index.add_all(before)
        kept: list[str] = []
        for row, local in zip(survivors, index.offer_all(block[row] for row in survivors), strict=True):
            if local is None:
                kept.append(block[row])
            else:  # places here count from the first of the block before
                known[row] = next_place - len(before) + local
        yield from known
        keeping.append(shards.call(turn % shards.count, "keep", kept, next_place))
        next_place, turn, before = next_place + len(kept), turn + 1, kept
        block, asked = following, asked_next
    for call in keeping:
        shards.result(call)


def _share_out(shards: Shards, texts: Sequence[str]) -> list[Any]:
    size = max(1, -(-len(texts) // shards.count))
    return [
        shards.call(number, "keep", list(texts[start : start + size]), start)
        for number, start in enumerate(range(0, len(texts), size))
    ]


def _ask(shards: Shards, block: Sequence[str]) -> list[Any]:
    return [shards.call(number, "duplicates_of", list(block)) for number in range(shards.count)] if block else []


def _first_places(answers: Sequence[Sequence[int | None]]) -> list[int | None]:
    return [
        min((place for place in places if place is not None), default=None) for places in zip(*answers, strict=True)
    ]


def _blocks(texts: Iterator[str]) -> Iterator[list[str]]:
    size = FIRST_BLOCK
    while block := list(islice(texts, size)):
        yield block
        size = min(LARGEST_BLOCK, 2 * size)
