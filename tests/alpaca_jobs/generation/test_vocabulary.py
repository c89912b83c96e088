"""Tokens get the numbers that a dict would give them, whatever shares a place in the table with what."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpaca_jobs.generation import vocabulary
from alpaca_jobs.generation.rouge import END, token_bytes
from alpaca_jobs.generation.vocabulary import Vocabulary

# Few letters, so that tokens come again, and lengths around a word's, two words' and what the table can hold.
TOKENS = st.text("ab1", min_size=1, max_size=2) | st.sampled_from([7, 8, 9, 15, 16, 17, 40]).flatmap(
    lambda size: st.text("ab", min_size=size, max_size=size)
)
TEXTS = st.lists(st.lists(TOKENS, max_size=12).map(" ".join) | st.just("A, b.  ") | st.just(""), max_size=8)


def tokenize(texts: list[str]) -> list[str]:
    return token_bytes(texts).decode("ascii").split()


@given(st.lists(TEXTS, max_size=6), st.integers(1, 4), st.integers(0, 4))
@settings(max_examples=100, deadline=None)
def test_numbers_are_those_of_a_dict(blocks: list[list[str]], first_bits: int, more_bits: int) -> None:
    numbers: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_FIRST_BITS", first_bits)
        patch.setattr(vocabulary, "_MOST_BITS", first_bits + more_bits)
        found = Vocabulary()
        for texts in blocks:
            ids, lengths = found.encode(token_bytes(texts))
            tokens = tokenize(texts)
            assert ids.tolist() == [numbers.setdefault(one, len(numbers)) for one in tokens if one != END]
            assert lengths.tolist() == [len(tokenize([text])) - 1 for text in texts]
            assert len(found) == len(numbers)


def test_most_tokens_are_found_in_the_table_and_it_grows_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_FIRST_BITS", 8)
    found = Vocabulary()
    words = [f"word{number}" for number in range(5000)]
    found.encode(token_bytes([" ".join(words)]))
    assert len(found._table) == 1024, "twice the bits at a time, once for each block"
    for _ in range(3):
        found.encode(token_bytes([" ".join(words)]))
    assert len(found._table) >= 16_384
    monkeypatch.setattr(found, "_numbers", dict.fromkeys(found._numbers, -7))  # what the dict is asked for shows
    ids, _ = found.encode(token_bytes([" ".join(words)]))
    assert (ids >= 0).mean() > 0.85
    assert all(number in (-7, place) for place, number in enumerate(ids.tolist()))
