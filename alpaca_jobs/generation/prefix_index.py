"""Which pairs of texts can be duplicates at all? A prefix filter that never loses one, in numpy.

Two texts of m and n tokens are duplicates only if LCS >= c (m + n), with c = threshold / 2 (F = 2 LCS / (m + n)). Their
LCS is at most the number of tokens they share, repeats counted. So, with every text's tokens sorted rarest first:

* Let the first shared token, in that order, stand at place i of one text and j of the other (from 0). All shared tokens
  stand there or later, so m - i >= c (m + n) and n - j >= c (m + n). The first says n <= (m - i) / c - m: this is the
  `reach` of place i, the longest partner it can prove anything about. Both texts must be within the other's reach at
  the shared token; a bound on one side alone loses pairs (FACTS.md: 43 of 21,362).
* A 64-bit signature has the bit of every token's hash. A bit that only one text has stands for a token of it that is
  not shared, which bounds the number of shared tokens again, from the other end.

What passes both goes to the exact comparison. `c` is taken a little too small and reaches a little too long, so that
rounding errs on the side of comparing.

Shapes: a block of texts is `tokens` (all tokens one after the other, int64 ids) and `lengths` (texts, int32).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Lengths = npt.NDArray[np.int32]
Signatures = npt.NDArray[np.uint64]

_REACH_BITS = 16
_LONGEST = 2**_REACH_BITS - 1  # reaches and lengths beyond it count as this; longer texts are only compared more often
_HITS_AT_A_TIME = 1 << 16  # so that what is made of them stays in the processor's cache
_PAIRS_AT_A_TIME = 1 << 20  # found before those that were found twice are thrown away
_TOKEN_BITS = 33  # for the place of a token in the order, with its sign


@dataclass(frozen=True)
class Prefixes:
    """The places of a block's texts that can prove something: token, text (row) and reach, one entry per place.

    Sorted by `keys`, so that a segment needs no other sort, and looking entries up goes through memory in order.
    """

    tokens: Ints
    rows: Ints
    reaches: Ints

    @property
    def keys(self) -> Ints:
        """One number per entry that sorts by token, then by reach."""
        keys: Ints = (self.tokens << _REACH_BITS) | np.minimum(self.reaches, _LONGEST)
        return keys

    def of_rows(self, rows: npt.NDArray[np.bool_]) -> Prefixes:
        """Return the entries of the rows where the mask holds."""
        mask = rows[self.rows]
        return Prefixes(self.tokens[mask], self.rows[mask], self.reaches[mask])


@dataclass(frozen=True)
class Segment:
    """Places of many texts, sorted by (token, reach); `rows` are numbers into arrays that the caller keeps."""

    keys: Ints
    rows: Ints

    @classmethod
    def build(cls, prefixes: Prefixes, rows: Ints) -> Segment:
        """Take over a block's places; `rows` gives the number of each of the block's texts."""
        return cls(prefixes.keys, rows[prefixes.rows])

    @classmethod
    def merge(cls, parts: Sequence[Segment]) -> Segment:
        """Return one segment with the places of several."""
        keys = np.concatenate([part.keys for part in parts])
        order = np.argsort(keys, kind="stable")  # timsort: sorted runs are merged in linear time
        return cls(keys[order], np.concatenate([part.rows for part in parts])[order])


class TokenOrder:
    """A fixed order of tokens, rarest first; which order it is changes only the speed."""

    def __init__(self, counts: Ints) -> None:
        """Take how often each token id was seen; ids that come later count as rarer than all of these."""
        self._by_rank = np.argsort(counts, kind="stable")
        self._rank = np.empty(len(counts), np.int64)
        self._rank[self._by_rank] = np.arange(len(counts))

    def places(self, tokens: Ints) -> Ints:
        """Return a number per token that sorts tokens; different tokens have different numbers."""
        known = len(self._rank)
        if not known:
            return -tokens
        return np.where(tokens < known, self._rank[np.minimum(tokens, known - 1)], -tokens)

    def tokens(self, places: Ints) -> Ints:
        """Return the tokens that have these places."""
        if not len(self._rank):
            return -places
        return np.where(places < 0, -places, self._by_rank[np.maximum(places, 0)])


def find_prefixes(tokens: Ints, lengths: Lengths, order: TokenOrder, share: float) -> Prefixes:
    """Return the places of a block's texts that can be the first shared token with some other text.

    Args:
        tokens, lengths: the block; texts without tokens are allowed and have no places.
        order: the same one for everything that is compared.
        share: c, the least LCS as a share of both lengths together.
    """
    m = lengths.astype(np.int64)
    rows = np.repeat(np.arange(len(m)), m)
    base = (rows << _TOKEN_BITS) + (1 << _TOKEN_BITS - 1)
    keys = base + order.places(tokens)
    keys.sort()  # by text, then by rarity
    places = keys - base  # a text has as many tokens as before
    left = np.repeat(np.cumsum(m), m) - np.arange(len(keys))  # tokens from this place on
    reaches = _reach(left, np.repeat(m, m), share)
    # A partner has at least c (m + n) tokens itself, so at least c m / (1 - c).
    least = np.maximum(1, np.ceil(share / (1 - share) * m - 1e-6)).astype(np.int64)
    useful = reaches >= np.repeat(least, m)
    useful[1:] &= keys[1:] != keys[:-1]  # a repeated token proves most at its first place
    found = Prefixes(order.tokens(places[useful]), rows[useful], reaches[useful])
    by_key = np.argsort(found.keys)
    return Prefixes(found.tokens[by_key], found.rows[by_key], found.reaches[by_key])


def _reach(left: Ints, m: Ints, share: float) -> Ints:
    return np.minimum(np.floor(left / max(share, 1e-12) - m + 1e-6), 2.0**31).astype(np.int64)


def sign(tokens: Ints, lengths: Lengths) -> Signatures:
    """Return the signature of every text of a block; 0 for a text without tokens."""
    signatures = np.zeros(len(lengths), np.uint64)
    if len(tokens):
        # Multiplicative hashing, the top 6 of 64 bits. Source: Knuth, The Art of Computer Programming 3, 6.4.
        bits = np.uint64(1) << ((tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58))
        some = lengths > 0
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        signatures[some] = np.bitwise_or.reduceat(bits, starts[some])
    return signatures


def find_pairs(
    segment: Segment,
    prefixes: Prefixes,
    block: tuple[Lengths, Signatures],
    indexed: tuple[Lengths, Signatures],
    share: float,
) -> tuple[Ints, Ints]:
    """Return every pair (row of the block, row of the segment) that may be a duplicate, each once, sorted.

    Args:
        segment: the places to look in; `indexed` are the lengths and signatures its rows count into.
        prefixes: the places of a block; `block` are its lengths and signatures.
        share: c; the same as for both sides' prefixes.
    """
    lengths = np.minimum(block[0], _LONGEST).astype(np.int64)[prefixes.rows]
    first = np.searchsorted(segment.keys, (prefixes.tokens << _REACH_BITS) | lengths)
    counts = np.searchsorted(segment.keys, (prefixes.tokens + 1) << _REACH_BITS) - first
    some = np.flatnonzero(counts)
    owners, reaches, first, counts = prefixes.rows[some], prefixes.reaches[some], first[some], counts[some]
    pairs, found, num_found = np.empty(0, np.int64), [], 0
    for part in _chunks(counts):
        rows, others = _near(segment, indexed[0], owners[part], reaches[part], first[part], counts[part])
        alike = _may_share_enough(block, rows, indexed, others, share)
        found.append((rows[alike] << 32) | others[alike])
        num_found += len(found[-1])
        if num_found > _PAIRS_AT_A_TIME:
            pairs, found, num_found = _different([pairs, *found]), [], 0
    pairs = _different([pairs, *found])
    return pairs >> 32, pairs & (2**32 - 1)


def _different(parts: Sequence[Ints]) -> Ints:
    """Return the different numbers of several arrays, sorted."""
    numbers: Ints = np.concatenate(parts)
    numbers.sort()
    return numbers[np.concatenate(([True], numbers[1:] != numbers[:-1]))] if len(numbers) else numbers


def _chunks(counts: Ints) -> Iterator[slice]:
    """Yield slices whose counts add up to about _HITS_AT_A_TIME, or one entry that alone has more."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        limit = (ends[start - 1] if start else 0) + _HITS_AT_A_TIME
        stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
        yield slice(start, stop)
        start = stop


def _near(
    segment: Segment, lengths: Lengths, owners: Ints, reaches: Ints, first: Ints, counts: Ints
) -> tuple[Ints, Ints]:
    """Return owner and other of the hits within reach, of runs of `counts` places that begin at `first`."""
    before = np.cumsum(counts) - counts
    place = np.repeat(first - before, counts)
    place += np.arange(len(place))
    others = segment.rows[place]
    near = np.flatnonzero(lengths[others] <= np.repeat(reaches, counts))
    return np.repeat(owners, counts)[near], others[near]


def _may_share_enough(
    block: tuple[Lengths, Signatures], rows: Ints, indexed: tuple[Lengths, Signatures], others: Ints, share: float
) -> npt.NDArray[np.bool_]:
    n, m = block[0][rows], indexed[0][others]
    mine, theirs = block[1][rows], indexed[1][others]
    shared = np.minimum(n - np.bitwise_count(mine & ~theirs), m - np.bitwise_count(theirs & ~mine))
    enough: npt.NDArray[np.bool_] = shared >= share * (n + m)
    return enough
