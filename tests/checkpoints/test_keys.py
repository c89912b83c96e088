"""Keys go both ways, and nothing that merely looks like a key is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.keys import (
    ATTEMPT_KINDS,
    MANIFEST,
    TRAIN_ONLY,
    CommitRef,
    Layout,
    Stage,
    attempt_key,
    base_copy_key,
    base_key,
    claim_key,
    end_key,
    lease_key,
    parse_attempt_key,
)

LAYOUT = Layout(
    (Stage("generate", "data", "part-", 6), Stage("train", "checkpoints", "step-", 8), Stage("export", "model", "", 0))
)
numbers = st.one_of(st.integers(1, 50), st.integers(1, 10**12))
refs = st.one_of(
    st.builds(CommitRef, st.sampled_from(["generate", "train"]), st.one_of(st.just(0), numbers), numbers),
    st.builds(CommitRef, st.just("export"), st.just(0), numbers),
)


def test_keys_look_as_the_design_says() -> None:
    assert LAYOUT.manifest_key(CommitRef("train", 400, 2)) == "checkpoints/step-00000400/attempt-000002/manifest.json"
    assert LAYOUT.commit_prefix(CommitRef("generate", 12, 1)) == "data/part-000012/attempt-000001/"
    assert LAYOUT.commit_prefix(CommitRef("export", 0, 3)) == "model/attempt-000003/"
    assert claim_key(2) == "attempts/000002.claim.json"
    others = [base_key(2), lease_key(2), end_key(2), base_copy_key(2)]
    assert others == [f"attempts/000002.{kind}.json" for kind in ATTEMPT_KINDS[1:]]


@given(refs, st.sampled_from([MANIFEST, "rank-00000-0000.bin", "deep/er.bin"]))
def test_every_commit_key_parses_back(ref: CommitRef, name: str) -> None:
    key = LAYOUT.commit_prefix(ref) + name
    assert LAYOUT.parse_key(key) == (ref, name)
    assert LAYOUT.parse_manifest_key(key) == (ref if name == MANIFEST else None)
    assert CommitRef.from_json(ref.to_json()) == ref


@given(numbers, st.sampled_from(ATTEMPT_KINDS))
def test_every_attempt_key_parses_back(number: int, kind: str) -> None:
    assert parse_attempt_key(attempt_key(number, kind)) == (number, kind)


@pytest.mark.parametrize(
    "key",
    [
        "checkpoints/step-400/attempt-000002/manifest.json",
        "checkpoints/step-000000400/attempt-000002/manifest.json",  # a second spelling of 400
        "checkpoints/step-00000400/attempt-0000002/manifest.json",
        "checkpoints/step-00000400/attempt-000000/manifest.json",
        "checkpoints/step-00000400/attempt-000002/",
        "checkpoints/step-00000400/manifest.json",
        "checkpoints/step-0000040x/attempt-000002/manifest.json",
        "model/step-00000400/attempt-000002x/manifest.json",
        "other/step-00000400/attempt-000002/manifest.json",
        "",
    ],
)
def test_what_only_looks_like_a_commit_is_none(key: str) -> None:
    assert LAYOUT.parse_key(key) is None
    assert LAYOUT.parse_manifest_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "attempts/2.claim.json",
        "attempts/0000002.claim.json",
        "attempts/000000.claim.json",
        "attempts/000002.claims.json",
        "attempts/000002.claim.json.tmp",
        "x/attempts/000002.claim.json",
    ],
)
def test_what_only_looks_like_an_attempt_is_none(key: str) -> None:
    assert parse_attempt_key(key) is None


def test_stages_order_before_positions_and_positions_before_attempts() -> None:
    ordered = [
        CommitRef("generate", 9, 9),
        CommitRef("train", 1, 2),
        CommitRef("train", 1, 3),
        CommitRef("train", 2, 1),
        CommitRef("export", 0, 1),
    ]
    assert sorted(reversed(ordered), key=LAYOUT.sort_key) == ordered


def test_keys_that_cannot_be_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="attempts are numbered from 1, got 0"):
        TRAIN_ONLY.commit_prefix(CommitRef("train", 1, 0))
    with pytest.raises(ValueError, match="positions start at 0, got -1"):
        TRAIN_ONLY.commit_prefix(CommitRef("train", -1, 1))
    with pytest.raises(ValueError, match="single position 0, got 4"):
        LAYOUT.commit_prefix(CommitRef("export", 4, 1))
    with pytest.raises(KeyError, match="no stage 'eval'"):
        LAYOUT.stage_index("eval")
    with pytest.raises(ValueError, match="kind 'stop'"):
        attempt_key(1, "stop")
    with pytest.raises(ValueError, match="does not name a commit"):
        CommitRef.from_json({"stage": "train"})


def test_layouts_that_cannot_be_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="two stages share a folder"):
        Layout((Stage("a", "x", "s-", 4), Stage("b", "x", "t-", 4)))
    with pytest.raises(ValueError, match="plain path segments"):
        Stage("a", "../x", "s-", 4)
    with pytest.raises(ValueError, match="item and digits go together"):
        Stage("a", "x", "", 4)
