"""Attempts on two machines (groups of processes with a Ray of their own): together, and with one of them lost."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.process_tree import find_marked, kill_marked
from cluster.recovery import StopReason

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TWO = {"compute": {"workers": 1, "num_nodes": 2}, "train": {"epochs": 40}}


def test_a_lost_machine_ends_the_attempt_and_a_notice_to_one_reaches_the_head(bench: Any) -> None:
    bench.create(num_rows=64, **TWO)
    node = bench.start()
    bench.wait_reached(node, "train", 4, timeout_s=180)
    for rank in (0, 1):
        names = [" ".join(one.cmdline()) for one in find_marked(node.nonce, rank=rank)]
        assert sum("TrainWorker" in name for name in names) == 1, names
    kill_marked(node.nonce, rank=1)
    assert bench.wait_exit(node, timeout_s=60) is StopReason.NODE_FAILURE
    assert "machine 1" in bench.end_of(1)["detail"]
    bench.backend.kill(node)
    following = bench.start(2)
    bench.wait_reached(following, "train", 7, timeout_s=180)
    assert bench.base_of(2).position >= 3
    (member,) = [one for one in find_marked(following.nonce, rank=1) if "cluster.node.main" in " ".join(one.cmdline())]
    member.terminate()
    assert bench.wait_exit(following, timeout_s=60) is StopReason.PREEMPTED
    assert bench.commits("train")[0].position == bench.backend.marks(following).reached[1]
    bench.wait_gone(following, "end of the second machine", timeout_s=60)


def test_losing_the_head_sends_the_second_machine_home(bench: Any) -> None:
    bench.create(num_rows=64, **TWO)
    node = bench.start()
    bench.wait_reached(node, "train", 4, timeout_s=180)
    kill_marked(node.nonce, rank=0)
    bench.wait_gone(node, "end of the second machine", timeout_s=90)
