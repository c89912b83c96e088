"""Run ids: readable, valid, and never a way out of a folder."""

from __future__ import annotations

import random

import pytest

from cluster.errors import WrongInput
from cluster.runs.run_ids import SUFFIX_ALPHABET, check_run_id, is_run_id, new_run_id


def test_run_id_is_the_jobs_name_and_a_short_suffix() -> None:
    run_id = new_run_id("alpaca-7b", rng=random.Random(1))
    assert run_id.startswith("alpaca-7b-")
    assert len(run_id) == len("alpaca-7b-") + 5
    assert check_run_id(run_id) == run_id


def test_run_ids_differ() -> None:
    assert len({new_run_id("a") for _ in range(200)}) == 200


def test_suffix_has_no_look_alikes_and_no_vowels() -> None:
    assert not set("aeiou01l") & set(SUFFIX_ALPHABET)


@pytest.mark.parametrize("value", ["", "demo", "demo-aaaaa", "../demo-bcdfg", "demo-bcdfg/x", "Demo-bcdfg", "-bcdfg",
                                   "demo-bcdfgh", "demo-bcdfg\n", "a" * 50 + "-bcdfg"])  # fmt: skip
def test_anything_else_is_refused_in_words(value: str) -> None:
    assert not is_run_id(value)
    with pytest.raises(WrongInput, match=r"is not a run id; those look like alpaca-7b-x3fkd .*alpaca-jobs runs"):
        check_run_id(value)
