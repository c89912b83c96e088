"""Ranks that hang for ever, with a real node: the attempt ends as a failure of its node, which waits for none."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest

from cluster.event_reading import read_events
from cluster.process_tree import find_marked
from cluster.recovery import StopReason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def ranks_of(nonce: str) -> list[psutil.Process]:
    """The training ranks of a node, by the title that Ray gives to their processes."""
    found = []
    for process in find_marked(nonce):
        try:
            if process.cmdline()[0].startswith("ray::TrainWorker"):
                found.append(process)
        except (psutil.NoSuchProcess, IndexError):
            continue
    return found


def test_ranks_that_hang_end_the_attempt_as_a_failure_of_the_node(bench: Any) -> None:
    bench.create(num_rows=24, train={"max_steps": 3000}, limits={"max_stall_min": 0.2})
    node = bench.start()
    bench.wait_reached(node, "train", 7)
    ranks = ranks_of(node.nonce)
    assert len(ranks) == 2
    for rank in ranks:  # alive, and silent: rank 0 answers its own node's driver no more either
        os.kill(rank.pid, signal.SIGSTOP)
    assert bench.wait_exit(node, timeout_s=120) is StopReason.NODE_FAILURE
    end = bench.end_of(1)
    assert (end["stop_reason"], end["retryable"]) == ("node_failure", True)
    assert "Training stands still on this machine: no step for" in end["detail"]
    assert bench.commits("train")[0].position >= 3
    told = [one.fields["step"] for one in read_events(bench.store) if one.kind == "step"]
    assert told == list(range(1, len(told) + 1))  # the newest may be with the rank still, which answers nobody
    assert len(told) >= 3
