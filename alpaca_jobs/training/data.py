"""Rows to tokens: prompts and answers in the recipe's format, EOS after every answer, loss on answers alone.

Shapes: tokens of all rows lie flat one after the other, (num_tokens,); row i is tokens[offsets[i] : offsets[i + 1]].
A row is what batches count; it may hold several pieces (documents packed together), which never see each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from alpaca_jobs.errors import DataError
from alpaca_jobs.training.tokenizer import Encoder, RowTokenizer

_CHUNK_CHARACTERS = 2**21  # text encoded at a time: its ids, Python lists at first, take some 40 MB
T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """One prompt and the answer to it; an Alpaca row is one turn, a conversation is several."""

    prompt: str
    answer: str


Example = tuple[Turn, ...]
Piece = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]
"""Token ids, and which of them are targets, of tokens that see each other; the first is never a target."""


class EncodedRow(NamedTuple):
    """One row as tokens, before it has its place among the others.

    Attributes:
        is_cut: whether tokens beyond the limit were left out.
        piece_lengths: tokens of each of its pieces; () where the row is one piece.
    """

    ids: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    is_cut: bool = False
    piece_lengths: tuple[int, ...] = ()


class EpochRows(Protocol):
    """The rows as one epoch sees them."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row, (num_rows,) int64."""

    @property
    def target_counts(self) -> npt.NDArray[np.int64]:
        """Target tokens of every row, (num_rows,) int64."""

    @property
    def squared_lengths(self) -> npt.NDArray[np.int64]:
        """Sum over its pieces of the squared number of tokens, (num_rows,) int64: what attention costs."""

    def pieces(self, row: int) -> list[Piece]:
        """The tokens of a row."""


class TrainingData(Protocol):
    """Rows to train on, whether they are in memory or in a file. The same on every rank, in every attempt.

    Attributes:
        num_truncated: rows cut at max_length.
        num_without_target: rows whose answer was cut away whole; they stay in their batches and teach nothing.
    """

    @property
    def num_truncated(self) -> int: ...

    @property
    def num_without_target(self) -> int: ...

    @property
    def digest(self) -> str:
        """Equal digests: the same tokens in the same rows with the same targets."""

    def __len__(self) -> int: ...

    def of_epoch(self, epoch: int) -> EpochRows:
        """The rows of an epoch, from 0."""


@dataclass(frozen=True)
class TokenizedRows:
    """All rows as tokens.

    Attributes:
        tokens: (num_tokens,) int32.
        offsets: (num_rows + 1,) int64.
        is_target: (num_tokens,) bool; True where the token carries loss. Never True for the first token of a row, which
            nothing in its own row predicts.
        num_truncated: rows cut at max_length.
        num_without_target: rows whose answer was cut away whole; they stay in their batches and teach nothing.
    """

    tokens: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    is_target: npt.NDArray[np.bool_]
    num_truncated: int
    num_without_target: int
    piece_starts: npt.NDArray[np.int64] | None = None
    """Where pieces begin in `tokens`, ascending, row beginnings included; None: every row is one piece."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of_epoch(self, epoch: int) -> TokenizedRows:
        """The same rows in every epoch."""
        return self

    def pieces(self, row: int) -> list[Piece]:
        """The tokens of a row, piece by piece."""
        return pieces_of(row, self.tokens, self.is_target, self.offsets, self.piece_starts)

    @cached_property
    def squared_lengths(self) -> npt.NDArray[np.int64]:
        """Sum over its pieces of the squared number of tokens, (num_rows,) int64."""
        if self.piece_starts is None:
            return self.lengths**2
        squares = np.diff(np.append(self.piece_starts, self.offsets[-1])) ** 2
        return np.asarray(np.add.reduceat(squares, np.searchsorted(self.piece_starts, self.offsets[:-1])), np.int64)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of every row, (num_rows,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def target_counts(self) -> npt.NDArray[np.int64]:
        """Target tokens of every row, (num_rows,) int64."""
        totals = np.concatenate([[0], np.cumsum(self.is_target, dtype=np.int64)])
        return np.asarray(totals[self.offsets[1:]] - totals[self.offsets[:-1]], dtype=np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over tokens, row borders and targets: two runs with the same digest train on the same data."""
        digest = hashlib.sha256()
        for array in (self.tokens.astype("<i4"), self.offsets.astype("<i8"), self.is_target):
            digest.update(array.tobytes())
        if self.piece_starts is not None:
            digest.update(self.piece_starts.astype("<i8").tobytes())
        return digest.hexdigest()


def pieces_of(
    row: int,
    tokens: npt.NDArray[np.int32],
    is_target: npt.NDArray[np.bool_],
    offsets: npt.NDArray[np.int64],
    piece_starts: npt.NDArray[np.int64] | None,
) -> list[Piece]:
    """The pieces of one row, from the arrays of all rows (as `TokenizedRows` has them)."""
    begin, end = int(offsets[row]), int(offsets[row + 1])
    starts = [begin]
    if piece_starts is not None:
        first, last = np.searchsorted(piece_starts, [begin, end])
        starts = piece_starts[first:last].tolist()
    return [(tokens[a:b], is_target[a:b]) for a, b in pairwise([*starts, end])]


def encode_examples(
    examples: Iterable[Example], tokenizer: RowTokenizer, *, max_length: int
) -> Iterator[EncodedRow]:  # fmt: skip
    """Encode every turn's prompt and answer as one text, end it with EOS, and mark the answer and its EOS as targets.

    Prompt and answer are encoded together and the prompt's own length is masked, as the published recipe does: encoding
    the answer apart would give it other tokens than the model meets after a prompt. EOS is added as an id, so an answer
    that contains the text of a special token cannot end itself. A turn after the first is encoded as what follows an
    EOS, so that the whole conversation as one text has these tokens when the model is used. A row longer than
    `max_length` is cut there, its EOS included.
    """
    encode_after = tokenizer.encode_after or tokenizer.encode
    for chunk in in_chunks(examples, size_of=lambda example: sum(len(one.prompt + one.answer) for one in example)):
        first = _encode_turns([example[0] for example in chunk], tokenizer.encode)
        later = _encode_turns([turn for example in chunk for turn in example[1:]], encode_after)
        for example in chunk:
            ids, is_target = list(tokenizer.prefix), [False] * len(tokenizer.prefix)
            for place in range(len(example)):
                text, prompt_length = next(later if place else first)
                masked = min(prompt_length, len(text))
                ids += [*text, tokenizer.eos_id]
                is_target += [False] * masked + [True] * (len(text) - masked + 1)
            yield cut_row(ids, is_target, max_length=max_length)


def _encode_turns(turns: Sequence[Turn], encode: Encoder) -> Iterator[tuple[list[int], int]]:
    """The ids of each turn, and how many of them are its prompt's."""
    prompts = encode([turn.prompt for turn in turns])
    texts = encode([turn.prompt + turn.answer for turn in turns])
    return zip(texts, map(len, prompts), strict=True)


def cut_row(ids: Sequence[int], is_target: list[bool], *, max_length: int) -> EncodedRow:
    """A row of one piece, cut at `max_length`; its first token, which nothing predicts, is no target."""
    is_target[:1] = [False]
    return EncodedRow(
        np.asarray(ids[:max_length], dtype=np.int32),
        np.asarray(is_target[:max_length], dtype=np.bool_),
        is_cut=len(ids) > max_length,
    )


def gather_rows(rows: Iterable[EncodedRow], *, max_length: int) -> TokenizedRows:
    """Hold encoded rows in memory. Raises DataError: no rows, or not one target in them."""
    kept = list(rows)
    lengths = [len(row.ids) for row in kept]
    num_without = sum(not row.is_target.any() for row in kept)
    check_learnable(len(kept), num_without, longest=max(lengths, default=0), max_length=max_length)
    offsets = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    starts = None
    if any(row.piece_lengths for row in kept):
        pieces = [length for row in kept for length in row.piece_lengths or (len(row.ids),)]
        starts = np.concatenate([[0], np.cumsum(pieces)[:-1]]).astype(np.int64)
    return TokenizedRows(
        tokens=np.concatenate([row.ids for row in kept]),
        offsets=offsets,
        is_target=np.concatenate([row.is_target for row in kept]),
        num_truncated=sum(row.is_cut for row in kept),
        num_without_target=num_without,
        piece_starts=starts,
    )


def check_learnable(num_rows: int, num_without_target: int, *, longest: int, max_length: int) -> None:
    """Refuse rows that teach nothing. Raises DataError: no rows, or not one target in them."""
    if not num_rows:
        raise DataError("There are no rows to train on. Generate some first, or set data.from to a file that has rows.")
    if num_without_target == num_rows:
        raise DataError(
            f"There is nothing to learn from: of {num_rows} rows none keeps a token of its answer within "
            f"train.max_length {max_length} (longest row after cutting: {longest} tokens). Raise train.max_length; "
            "Alpaca uses 512."
        )


def in_chunks(items: Iterable[T], *, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of items to encode at once: as many as bring their sizes, in characters, to a bound, and one at least."""
    chunk: list[T] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
