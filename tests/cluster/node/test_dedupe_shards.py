"""Dedupe over real Ray actors: the same decisions as in one process."""

from __future__ import annotations

import random

import pytest

from alpaca_jobs.generation.sharded import offer_all_sharded
from alpaca_jobs.generation.similarity import SimilarityIndex
from cluster.node.dedupe_shards import ray_shards


@pytest.mark.slow
def test_two_ray_actors_decide_as_one_process_does() -> None:
    rng, texts = random.Random(3), []
    words = [f"w{number}" for number in range(900)]
    for _ in range(5000):
        text = rng.choice(texts).split() if texts and rng.random() < 0.5 else rng.choices(words, k=rng.randrange(4, 18))
        text[rng.randrange(len(text))] = rng.choice(words)
        texts.append(" ".join(text))
    index = SimilarityIndex()
    index.add_all(texts[:300])
    expected = list(index.offer_all(texts[300:]))
    with ray_shards(2, 0.7) as shards:
        assert list(offer_all_sharded(texts[300:], shards, threshold=0.7, against=texts[:300])) == expected
    assert sum(place is not None for place in expected) > 1000
