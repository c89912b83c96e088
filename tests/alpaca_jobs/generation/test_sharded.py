"""Dedupe in shards decides as dedupe in one process does: the same first duplicate for every text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_jobs.data.record_files import Record
from alpaca_jobs.generation import sharded
from alpaca_jobs.generation.dedupe import decide_records
from alpaca_jobs.generation.sharded import Shard, offer_all_sharded
from alpaca_jobs.generation.similarity import SimilarityIndex

WORDS = st.sampled_from(["a", "b", "c", "the", "x1", "2023", "naïve", "—", "re-do"])
SENTENCES = st.lists(WORDS, max_size=14).map(" ".join)


class ThreadShards:
    """Shards in threads of this process, one each; a context."""

    def __init__(self, count: int, threshold: float) -> None:
        self._shards = [Shard(threshold) for _ in range(count)]
        self._threads = [ThreadPoolExecutor(1) for _ in range(count)]

    def __enter__(self) -> ThreadShards:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.shutdown()

    @property
    def count(self) -> int:
        return len(self._shards)

    def call(self, shard: int, method: str, *args: Any) -> Future[Any]:
        return self._threads[shard].submit(getattr(self._shards[shard], method), *args)

    def result(self, call: Future[Any]) -> Any:
        return call.result()


def in_one_process(texts: Sequence[str], threshold: float, against: Sequence[str] = ()) -> list[int | None]:
    index = SimilarityIndex(threshold)
    index.add_all(against)
    return list(index.offer_all(texts))


def in_shards(texts: Sequence[str], threshold: float, count: int, against: Sequence[str] = ()) -> list[int | None]:
    with ThreadShards(count, threshold) as shards:
        return list(offer_all_sharded(texts, shards, threshold=threshold, against=against))


@given(
    texts=st.lists(SENTENCES, max_size=90), threshold=st.sampled_from([0.7, 0.3, 0.0, 0.95]),
    count=st.integers(1, 4), num_earlier=st.integers(0, 20), block=st.integers(1, 40),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_stream_in_any_number_of_shards_and_blocks(
    texts: list[str], threshold: float, count: int, num_earlier: int, block: int
) -> None:
    against, rest = texts[:num_earlier], texts[num_earlier:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "FIRST_BLOCK", block)
        patch.setattr(sharded, "LARGEST_BLOCK", 2 * block)
        found = in_shards(rest, threshold, count, against)
    assert found == in_one_process(rest, threshold, against)


def stream(count: int) -> list[str]:
    """Sentences of which half are earlier ones with a word or two changed."""
    rng, made = random.Random(count), []
    words = [f"w{number}" for number in range(700)]
    for _ in range(count):
        if made and rng.random() < 0.5:
            text = rng.choice(made[-2000:]).split()
            text[rng.randrange(len(text))] = rng.choice(words)
        else:
            text = rng.choices(words, k=rng.randrange(3, 20))
        made.append(" ".join(text))
    return made


@pytest.mark.parametrize("count", [2, 3])
def test_a_long_stream_over_many_blocks(count: int) -> None:
    texts = stream(6000)
    expected = in_one_process(texts, 0.7)
    assert in_shards(texts, 0.7, count) == expected
    assert sum(place is not None for place in expected) > 1500


def test_records_and_those_kept_before_them() -> None:
    records = [Record(f"row {number}", {"instruction": text}) for number, text in enumerate(stream(900))]
    against: list[Any] = [record.fields["instruction"] for record in records[:50]]
    one = list(decide_records(records[50:], against=against))
    with ThreadShards(2, 0.7) as shards:
        assert list(decide_records(records[50:], against=against, shards=shards)) == one
    assert 0 < one.count(None) < 850


def test_nothing_at_all_is_no_rows() -> None:
    assert in_shards([], 0.7, 2) == []
