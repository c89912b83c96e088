"""Real attempts one after the other: what each starts from, what a notice saves, what damage means.

Starting a node takes most of the time, so one run carries the first three tests: each looks at its own attempts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.keys import CommitRef
from cluster.exits import Notice
from cluster.recovery import StopReason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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


@dataclass(frozen=True)
class Story:
    """One run of four attempts, as it was at the moments that matter.

    1: told to leave in training. 2: from there on, killed after more commits; then its newest one is damaged. 3: killed
    as well; then every commit of training is damaged. 4: ends by itself.

    Attributes:
        reached, newest: steps made, and the newest commit, at the end of attempt 1.
        killed: commits of training when attempt 2 was killed, newest first.
        counting: those that count while attempt 3 trains.
        said: what the node of attempt 3 logged.
        reasons: of the ends of attempts 1 and 4.
    """

    bench: Any
    reached: int
    newest: CommitRef
    killed: Sequence[CommitRef]
    counting: Sequence[CommitRef]
    said: str
    reasons: tuple[StopReason, StopReason]


@pytest.fixture(scope="module")
def story(make_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with make_bench(tmp_path_factory.mktemp("story")) as bench:
        bench.create()
        first = bench.start()
        bench.wait_reached(first, "train", 4)
        bench.backend.notice(first, Notice(StopReason.PREEMPTED, 25.0))
        left = bench.wait_exit(first, timeout_s=25)
        reached = bench.backend.marks(first).reached[1]
        newest = bench.commits("train")[0]
        second = bench.start(2)
        bench.wait_reached(second, "train", reached + 1)
        bench.wait_for(lambda: bench.commits("train")[0].attempt == 2, "a commit of attempt 2")
        bench.backend.kill(second)
        killed = bench.commits("train")
        flip_a_bit(bench, killed[0])
        third = bench.start(3)
        bench.wait_reached(third, "train", killed[1].position + 1)
        counting, said = bench.commits("train"), bench.backend.logs(third).decode()
        bench.backend.kill(third)
        for ref in bench.commits("train"):
            flip_a_bit(bench, ref)
        ended = bench.wait_exit(bench.start(4))
        yield Story(bench, reached, newest, killed, counting, said, (left, ended))


def test_a_notice_in_training_saves_the_very_step_and_the_next_attempt_starts_there(story: Story) -> None:
    assert story.reasons[0] is StopReason.PREEMPTED
    assert story.bench.end_of(1)["stop_reason"] == "preempted"
    assert story.newest == CommitRef("train", story.reached, 1)
    assert story.bench.base_of(2) == CommitRef("train", story.reached, 1)


def test_a_damaged_newest_checkpoint_falls_back_one_and_the_run_says_so(story: Story) -> None:
    newest, older = story.killed[:2]
    assert newest.attempt == 2
    assert story.bench.base_of(3) == older
    assert newest not in story.counting
    assert LAYOUT.commit_prefix(newest) in story.said


def test_with_every_checkpoint_damaged_the_run_stops_and_never_starts_over(story: Story) -> None:
    assert story.reasons[1] is StopReason.STORE_FAILURE
    end = story.bench.end_of(4)
    assert (end["exit_code"], end["retryable"]) == (3, False)
    assert "could be read, and nothing starts over silently" in end["detail"]


def test_a_notice_in_generation_commits_the_rows_at_hand(bench: Any) -> None:
    bench.create(data={"num_rows": 2000, "part_requests": 50})
    node = bench.start()
    # Long before the first part of 50 requests is full.
    bench.wait_for(lambda: len(bench.store.list("answers/")) >= 6, "first answers")
    bench.backend.notice(node, Notice(StopReason.PREEMPTED, 25.0))
    assert bench.wait_exit(node, timeout_s=25) is StopReason.PREEMPTED
    (part,) = bench.commits("generate")
    assert len(bench.rows_of(part)) > 0


def test_a_number_that_is_taken_is_left_alone(bench: Any) -> None:
    bench.create()
    bench.log.claim(1, {"nonce": "somebody-else"})
    before = bench.contents()
    assert bench.wait_exit(bench.start(1)) is StopReason.SUPERSEDED
    assert bench.contents() == before
