"""Documents to rows of a fixed number of tokens, for continued pre-training: cut into blocks, or packed by best fit.

Shapes: as in data.py. Every token of a document but its first is a target, its EOS included.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from alpaca_jobs.errors import DataError
from alpaca_jobs.training.data import EncodedRow, in_chunks
from alpaca_jobs.training.tokenizer import RowTokenizer

Ids = npt.NDArray[np.int32]
Flatten = Callable[[Iterable[Ids]], tuple[Ids, list[int]]]
"""Puts documents one after the other, in memory or in a file; returns all their tokens, and the length of each."""


def encode_documents(
    texts: Iterable[str],
    tokenizer: RowTokenizer,
    *,
    block_size: int,
    packing: Literal["blocks", "best_fit"],
    flatten: Flatten | None = None,
) -> Iterator[EncodedRow]:
    """Encode documents, end each with EOS, and make rows of at most `block_size` tokens of them.

    Args:
        packing: blocks: all documents one after the other, cut every `block_size` tokens, as Hugging Face's run_clm.py
            does (its `group_texts` drops the rest at the end; here that is a shorter last row). best_fit: documents
            stay whole as far as they fit and never see each other.
        flatten: where best_fit keeps all tokens until it knows their order; None: in memory.

    Raises:
        DataError: there are no documents, or only empty ones.
    """
    documents = _refuse_nothing(_encoded(texts, tokenizer))
    if packing == "blocks":
        return _blocks(documents, block_size)
    return _best_fit(documents, block_size, flatten or _in_memory)


def _refuse_nothing(documents: Iterable[Ids]) -> Iterator[Ids]:
    number = 0
    for number, document in enumerate(documents, start=1):  # noqa: B007 - asked for below
        yield document
    if not number:
        raise DataError("There is no text to train on: every document is empty. Give a file that holds some.")


def _encoded(texts: Iterable[str], tokenizer: RowTokenizer) -> Iterator[Ids]:
    for chunk in in_chunks((text for text in texts if text.strip()), size_of=len):
        for ids in tokenizer.encode(chunk):
            yield np.asarray([*tokenizer.prefix, *ids, tokenizer.eos_id], dtype=np.int32)


def _in_memory(documents: Iterable[Ids]) -> tuple[Ids, list[int]]:
    kept = list(documents)
    return np.concatenate(kept), [len(document) for document in kept]


def _blocks(documents: Iterable[Ids], size: int) -> Iterator[EncodedRow]:
    waiting: list[Ids] = []
    count = 0
    for document in documents:
        waiting.append(document)
        count += len(document)
        if count >= size:
            tokens = np.concatenate(waiting)
            count %= size
            whole = len(tokens) - count
            yield from (_row(tokens[begin : begin + size], ()) for begin in range(0, whole, size))
            waiting = [tokens[whole:]]
    if count:
        yield _row(np.concatenate(waiting), ())


def _best_fit(documents: Iterable[Ids], size: int, flatten: Flatten) -> Iterator[EncodedRow]:
    tokens, lengths = flatten(documents)
    begins: list[int] = []
    sizes: list[int] = []
    begin = 0
    for length in lengths:
        for place in range(0, length, size):
            begins.append(begin + place)
            sizes.append(min(size, length - place))
        begin += length
    for members in best_fit(sizes, size):
        pieces = [np.asarray(tokens[begins[piece] : begins[piece] + sizes[piece]]) for piece in members]
        yield _row(np.concatenate(pieces), tuple(sizes[piece] for piece in members))


def _row(ids: Ids, piece_lengths: tuple[int, ...]) -> EncodedRow:
    """Every token is a target but the first of each piece."""
    is_target = np.ones(len(ids), dtype=np.bool_)
    is_target[np.cumsum((0, *piece_lengths[:-1]))] = False
    return EncodedRow(ids, is_target, piece_lengths=piece_lengths)


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Put pieces into bins of `size`: the longest first, each into the bin it fills best; ties by index.

    Source: best-fit packing, arXiv:2404.10830, algorithm 1. Time is pieces x log(size).

    Args:
        lengths: of the pieces, each from 1 to `size`.
    """
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room left -> bins that have it
    rooms: list[int] = []  # the keys of by_room, ascending
    for piece in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        place = bisect_left(rooms, lengths[piece])
        if place == len(rooms):
            number, room = len(bins), size
            bins.append([])
        else:
            room = rooms[place]
            number = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[place]
        bins[number].append(piece)
        room -= lengths[piece]
        if room:
            if room not in by_room:
                by_room[room] = []
                insort(rooms, room)
            by_room[room].append(number)
    return bins
