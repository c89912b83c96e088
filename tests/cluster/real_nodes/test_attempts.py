"""Real attempts one after the other: what each starts from, what a notice saves, what damage means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.keys import CommitRef
from cluster.exits import Notice
from cluster.recovery import StopReason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def flip_a_bit(bench: Any, ref: CommitRef) -> None:
    """Damage the largest object of a commit on disk."""
    prefix = LAYOUT.commit_prefix(ref)
    keys = [key for key in bench.store.list(prefix) if not key.endswith("manifest.json")]
    path = max(
        (Path(bench.store.uri.removeprefix("file://")) / key for key in keys), key=lambda one: one.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_notice_in_training_saves_the_very_step_and_the_next_attempt_starts_there(bench: Any) -> None:
    bench.create()
    node = bench.start()
    bench.wait_reached(node, "train", 4)
    bench.backend.notice(node, Notice(StopReason.PREEMPTED, 25.0))
    assert bench.wait_exit(node, timeout_s=25) is StopReason.PREEMPTED
    reached = bench.backend.marks(node).reached
    assert bench.end_of(1)["stop_reason"] == "preempted"
    assert bench.commits("train")[0].position == reached[1]
    following = bench.start(2)
    bench.wait_reached(following, "train", reached[1] + 1)
    assert bench.base_of(2) == CommitRef("train", reached[1], 1)


def test_a_notice_in_generation_commits_the_rows_at_hand(bench: Any) -> None:
    bench.create(data={"num_rows": 2000, "part_requests": 50})
    node = bench.start()
    # Long before the first part of 50 requests is full.
    bench.wait_for(lambda: len(bench.store.list("answers/")) >= 6, "first answers")
    bench.backend.notice(node, Notice(StopReason.PREEMPTED, 25.0))
    assert bench.wait_exit(node, timeout_s=25) is StopReason.PREEMPTED
    (part,) = bench.commits("generate")
    assert len(bench.rows_of(part)) > 0


def test_a_damaged_newest_checkpoint_falls_back_one_and_the_run_says_so(bench: Any) -> None:
    bench.create()
    node = bench.start()
    bench.wait_reached(node, "train", 8)
    bench.backend.kill(node)
    newest, older = bench.commits("train")[:2]
    flip_a_bit(bench, newest)
    following = bench.start(2)
    bench.wait_reached(following, "train", older.position + 1)
    assert bench.base_of(2) == older
    assert newest not in bench.commits("train")
    said = bench.backend.logs(following).decode()
    assert LAYOUT.commit_prefix(newest) in said
    bench.backend.kill(following)


def test_with_every_checkpoint_damaged_the_run_stops_and_never_starts_over(bench: Any) -> None:
    bench.create()
    node = bench.start()
    bench.wait_reached(node, "train", 8)
    bench.backend.kill(node)
    for ref in bench.commits("train"):
        flip_a_bit(bench, ref)
    following = bench.start(2)
    assert bench.wait_exit(following) is StopReason.STORE_FAILURE
    end = bench.end_of(2)
    assert (end["exit_code"], end["retryable"]) == (3, False)
    assert "could be read, and nothing starts over silently" in end["detail"]


def test_a_number_that_is_taken_is_left_alone(bench: Any) -> None:
    bench.create()
    bench.log.claim(1, {"nonce": "somebody-else"})
    before = bench.contents()
    assert bench.wait_exit(bench.start(1)) is StopReason.SUPERSEDED
    assert bench.contents() == before
