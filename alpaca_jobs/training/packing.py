"""Documents to rows of a fixed number of tokens, for continued pre-training: cut into blocks, or packed by best fit.

Shapes: as in data.py. Every token of a document but its first is a target, its EOS included.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from alpaca_jobs.errors import DataError
from alpaca_jobs.training.data import TokenizedRows
from alpaca_jobs.training.tokenizer import RowTokenizer

_CHUNK = 1024  # documents encoded at a time


def pack_documents(
    texts: Iterable[str], tokenizer: RowTokenizer, *, block_size: int, packing: Literal["blocks", "best_fit"]
) -> TokenizedRows:
    """Encode documents, end each with EOS, and make rows of at most `block_size` tokens of them.

    Args:
        packing: blocks: all documents one after the other, cut every `block_size` tokens, as Hugging Face's run_clm.py
            does (its `group_texts` drops the rest at the end; here that is a shorter last row). best_fit: documents
            stay whole as far as they fit and never see each other.

    Raises:
        DataError: there are no documents, or only empty ones.
    """
    documents = list(_encoded(texts, tokenizer))
    if not documents:
        raise DataError("There is no text to train on: every document is empty. Give a file that holds some.")
    return _blocks(documents, block_size) if packing == "blocks" else _best_fit(documents, block_size)


def _encoded(texts: Iterable[str], tokenizer: RowTokenizer) -> Iterable[npt.NDArray[np.int32]]:
    waiting: list[str] = []
    for text in texts:
        waiting += [text] if text.strip() else []
        if len(waiting) == _CHUNK:
            yield from _encode(waiting, tokenizer)
            waiting = []
    yield from _encode(waiting, tokenizer)


def _encode(texts: list[str], tokenizer: RowTokenizer) -> Iterable[npt.NDArray[np.int32]]:
    for ids in tokenizer.encode(texts) if texts else ():
        yield np.asarray([*tokenizer.prefix, *ids, tokenizer.eos_id], dtype=np.int32)


def _blocks(documents: Sequence[npt.NDArray[np.int32]], size: int) -> TokenizedRows:
    tokens = np.concatenate(documents)
    offsets = np.append(np.arange(0, len(tokens), size, dtype=np.int64), len(tokens))
    is_target = np.ones(len(tokens), dtype=np.bool_)
    is_target[offsets[:-1]] = False
    return TokenizedRows(
        tokens=tokens, offsets=offsets, is_target=is_target, num_truncated=0,
        num_without_target=int((np.diff(offsets) < 2).sum()),
    )  # fmt: skip


def _best_fit(documents: Sequence[npt.NDArray[np.int32]], size: int) -> TokenizedRows:
    pieces = [document[begin : begin + size] for document in documents for begin in range(0, len(document), size)]
    bins = best_fit([len(piece) for piece in pieces], size)
    order = [piece for members in bins for piece in members]
    lengths = np.asarray([len(pieces[piece]) for piece in order], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    tokens = np.concatenate([pieces[piece] for piece in order])
    is_target = np.ones(len(tokens), dtype=np.bool_)
    is_target[starts] = False
    loads = [sum(len(pieces[piece]) for piece in members) for members in bins]
    offsets = np.concatenate([[0], np.cumsum(loads)])
    return TokenizedRows(
        tokens=tokens, offsets=offsets, is_target=is_target, num_truncated=0,
        num_without_target=sum(load == len(members) for load, members in zip(loads, bins, strict=True)),
        piece_starts=starts,
    )  # fmt: skip


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
