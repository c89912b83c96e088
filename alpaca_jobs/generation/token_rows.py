"""Texts as token ids, packed: a vocabulary, one growing array of ids, and each text's length and signature.

For rapidfuzz a text becomes a string with one character per token, which it compares several times faster than a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alpaca_jobs.generation.prefix_index import Ints, Lengths, Signatures
from alpaca_jobs.generation.rouge import token_bytes
from alpaca_jobs.generation.vocabulary import Vocabulary

_SURROGATES = range(0xD800, 0xE000)  # code points that are not characters; ids skip them
MAX_CHARACTERS = 0x10FFFF - len(_SURROGATES)
"""Ids beyond this have no character; such a stream is compared as lists of numbers, with the same results."""


class TokenRows:
    """Rows of token ids by place. Ids count from 0 in the order in which tokens were first seen."""

    def __init__(self, *, max_characters: int = MAX_CHARACTERS) -> None:
        """Make an empty table; `max_characters` is smaller only in tests."""
        self._max_characters = max_characters
        self._vocabulary = Vocabulary()
        self._counts = _Growing(np.int64)
        self._tokens = _Growing(np.int32)
        self._ends = _Growing(np.int64)
        self._lengths = _Growing(np.int32)
        self._signatures = _Growing(np.uint64)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._lengths.values)

    @property
    def lengths(self) -> Lengths:
        """Tokens of every row."""
        return self._lengths.values

    @property
    def signatures(self) -> Signatures:
        """Signature of every row."""
        return self._signatures.values

    @property
    def token_counts(self) -> Ints:
        """How often each token id was encoded, rows that were not appended included."""
        return self._counts.values

    def encode(self, texts: Sequence[str]) -> tuple[Ints, Lengths]:
        """Return the ids of texts one after the other and their lengths, giving new tokens ids; adds no row."""
        ids, lengths = self._vocabulary.encode(token_bytes(texts))
        self._counts.extend(np.zeros(len(self._vocabulary) - len(self._counts.values), np.int64))
        np.add.at(self._counts.values, ids, 1)
        return ids, lengths

    def append(self, tokens: Ints, lengths: Lengths, signatures: Signatures) -> None:
        """Add encoded rows."""
        before = int(self._ends.values[-1]) if len(self) else 0
        self._tokens.extend(tokens)
        self._ends.extend(np.cumsum(lengths, dtype=np.int64) + before)
        self._lengths.extend(lengths)
        self._signatures.extend(signatures)

    def slice(self, start: int, stop: int) -> tuple[Ints, Lengths]:
        """Return ids and lengths of the rows from `start` to `stop`."""
        first = int(self._ends.values[start - 1]) if start else 0
        last = int(self._ends.values[stop - 1]) if stop else 0
        return self._tokens.values[first:last].astype(np.int64), self._lengths.values[start:stop]

    def sequences(self, places: Ints) -> list[Any]:
        """Return rows, by place, in the form that rapidfuzz compares."""
        lengths = self._lengths.values[places]
        before = np.cumsum(lengths, dtype=np.int64) - lengths
        starts = self._ends.values[places] - lengths
        wanted = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
        return self.sequences_of(self._tokens.values[wanted], lengths)

    def sequences_of(self, tokens: npt.NDArray[Any], lengths: Lengths) -> list[Any]:
        """Return encoded texts in the form that rapidfuzz compares."""
        everything = self._sequence(tokens)
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        return [everything[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

    def _sequence(self, tokens: npt.NDArray[Any]) -> Any:
        """Return one character per token, or one number where there are more tokens than characters.

        rapidfuzz takes a character for its code point, so strings and lists of numbers can be compared with each other.
        """
        codes = tokens.astype(np.uint32)
        codes[codes >= _SURROGATES.start] += len(_SURROGATES)
        if len(self._vocabulary) > self._max_characters:
            return codes.tolist()
        return codes.tobytes().decode("utf-32-le")


class _Growing:
    """A numpy array that grows at its end, in amortized constant time per element."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._buffer = np.empty(1024, dtype)
        self._size = 0

    @property
    def values(self) -> npt.NDArray[Any]:
        """What is in it; a view that is valid until the next `extend`."""
        return self._buffer[: self._size]

    def extend(self, values: npt.NDArray[Any]) -> None:
        """Add values at the end."""
        size = self._size + len(values)
        if size > len(self._buffer):
            grown = np.empty(max(size, 2 * len(self._buffer)), self._buffer.dtype)
            grown[: self._size] = self.values
            self._buffer = grown
        self._buffer[self._size : size] = values
        self._size = size
