"""Tokens to numbers, a hundred thousand at a time: an exact hash table in numpy, and a dict for what it does not hold.

A token's first 16 bytes are two words of 64 bits. The table has one place for each hash of the two; a token whose words
stand there has its number from there, all tokens of a block at once. What is new, longer, or has another token in its
place is looked up in the dict, one by one. Words are compared, not hashes alone, so that nothing is ever mistaken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alpaca_jobs.generation.rouge import END

_WORD = 8  # bytes
_LONGEST = 2 * _WORD  # bytes of a token that the table can hold
_FIRST_BITS, _MOST_BITS = 18, 22  # 6 MB, and 100 MB for a million different tokens
_ROOM = 4  # places for every token, so that few have to share one
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
"""Odd, to multiply by. Sources: Knuth, The Art of Computer Programming 3, 6.4; the second prime of xxHash's 64 bits."""
Words = npt.NDArray[np.uint64]


class Vocabulary:
    """Numbers of tokens, from 0 in the order in which they were first seen."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._bits = _FIRST_BITS
        # Of each place: the two words, and the number plus 1; 0 for none. In one row, which is fetched at once.
        self._table = np.zeros((1 << self._bits, 3), np.uint64)

    def __len__(self) -> int:
        """Return how many tokens have numbers."""
        return len(self._numbers)

    def encode(self, text: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Return the numbers of all tokens, and how many each text has; new tokens get the next numbers.

        Args:
            text: as rouge.token_bytes makes it.
        """
        data = np.frombuffer(text + bytes(_LONGEST), np.uint8)
        is_token = data > ord(" ")
        edges = np.flatnonzero(is_token[1:] != is_token[:-1]) + 1
        if len(text) and is_token[0]:
            edges = np.concatenate(([0], edges))
        starts, sizes = edges[::2], edges[1::2] - edges[::2]
        ends = np.flatnonzero(data[: len(text)] == ord(END))
        lengths = np.diff(np.searchsorted(starts, ends), prepend=0).astype(np.int32)
        return self._numbers_of(text, data, starts, sizes), lengths

    def _numbers_of(self, text: bytes, data: Any, starts: Any, sizes: Any) -> npt.NDArray[np.int64]:
        # A word begins at every byte: little-endian, so that what follows the token are its upper bytes.
        words = np.ndarray((len(data) - _WORD + 1,), "<u8", data, strides=(1,))
        first = _cut(words[starts], sizes)
        second = _cut(words[starts + _WORD], np.maximum(sizes - _WORD, 0))
        places = self._places(first, second)
        rows = self._table.take(places, axis=0)
        numbers = rows[:, 2].astype(np.int64) - 1
        others = np.flatnonzero((rows[:, 0] != first) | (rows[:, 1] != second) | (sizes > _LONGEST))
        known = self._numbers
        if not len(others):
            return numbers
        starts, sizes = starts[others], sizes[others]
        found = [
            known.setdefault(text[start:end], len(known))
            for start, end in zip(starts.tolist(), (starts + sizes).tolist(), strict=True)
        ]
        is_free = (numbers[others] < 0) & (sizes <= _LONGEST)
        numbers[others] = found
        new = others[is_free]
        self._hold(first[new], second[new], (numbers[new] + 1).astype(np.uint64))
        return numbers

    def _places(self, first: Words, second: Words) -> Words:
        mixed: Words = (first * _FACTORS[0] ^ second * _FACTORS[1]) * _FACTORS[0] >> np.uint64(64 - self._bits)
        return mixed

    def _hold(self, first: Words, second: Words, numbers: Words) -> None:
        """Give tokens their places, where there are enough; of several for one place the last stays."""
        if len(self._numbers) * _ROOM > len(self._table) and self._bits < _MOST_BITS:
            before = self._table[self._table[:, 2] > 0]
            self._bits += 2
            self._table = np.zeros((1 << self._bits, 3), np.uint64)
            self._table[self._places(before[:, 0], before[:, 1])] = before
        self._table[self._places(first, second)] = np.stack((first, second, numbers), axis=1)


def _cut(words: Words, sizes: Any) -> Words:
    """The first `sizes` bytes of words; all of it from 8 on."""
    keep = _KEEP[np.minimum(sizes, _WORD)]
    cut: Words = words & keep
    return cut


_KEEP: Words = np.array([(1 << 8 * size) - 1 for size in range(_WORD + 1)], np.uint64)
