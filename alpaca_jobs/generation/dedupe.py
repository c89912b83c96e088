"""Dedupe of records that exist already: which are kept, in their order, by the same decisions as in generation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alpaca_jobs.data.files import NEIGHBOURS
from alpaca_jobs.data.record_files import Record
from alpaca_jobs.generation.sharded import Shards, offer_all_sharded
from alpaca_jobs.generation.similarity import SimilarityIndex

NUM_NEIGHBOURS = 10
"""Nearest instructions that a kept record names. Source: Stanford Alpaca, generate_instruction.py."""


def decide_records(
    records: Iterable[Record],
    *,
    field: str = "instruction",
    threshold: float = 0.7,
    against: Iterable[str] = (),
    with_neighbours: bool = False,
    shards: Shards | None = None,
) -> Iterator[Mapping[str, Any] | None]:
    """Decide which records are kept: those whose text has no ROUGE-L F above `threshold` with a text kept before.

    Of records no more are held than are decided at once (a block); of what was kept, its text alone.

    Args:
        records: in the order in which they are decided.
        field: which field's text is compared.
        against: texts that count as kept already, such as the seed tasks.
        with_neighbours: add Alpaca's `most_similar_instructions` (the 10 nearest of `against` and those kept before,
            with their F) and `avg_similarity_score` to every kept record; compares with all, so it takes longer.
        shards: empty ones to share the work among, made with the same threshold; not for neighbours.

    Returns:
        Record by record, in order: the fields of one that is kept, None for one that is dropped.

    Raises:
        DataError: a record without a text in that field; says which.
    """
    if with_neighbours:
        yield from _with_neighbours(records, field, threshold, list(against))
        return
    waiting: deque[Record] = deque()

    def texts() -> Iterator[str]:
        for record in records:
            waiting.append(record)
            yield record.text(field, may_be_empty=True)

    if shards is None:
        index = SimilarityIndex(threshold)
        index.add_all(against)
        decisions = index.offer_all(texts())
    else:
        decisions = offer_all_sharded(texts(), shards, threshold=threshold, against=list(against))
    for duplicate in decisions:
        fields = waiting.popleft().fields
        yield fields if duplicate is None else None


def _with_neighbours(
    records: Iterable[Record], field: str, threshold: float, earlier: list[str]
) -> Iterator[Mapping[str, Any] | None]:
    """The same decisions; a record that is kept names its nearest of those before it, which are held as texts."""
    index = SimilarityIndex(threshold)
    index.add_all(earlier)
    for record in records:
        text = record.text(field, may_be_empty=True)
        if index.duplicate_of(text) is not None:
            yield None
            continue
        found = index.neighbours(text, count=NUM_NEIGHBOURS)
        nearest = {earlier[place]: score for place, score in found.nearest}
        yield {**record.fields, NEIGHBOURS: nearest, "avg_similarity_score": found.average}
        index.add(text)
        earlier.append(text)
