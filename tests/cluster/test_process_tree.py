"""A node's processes are found and killed by their mark alone, wherever they went."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cluster.process_tree import NODE_MARK, RUN_MARK, find_marked, find_nodes, is_alive, kill_marked, new_nonce

pytestmark = pytest.mark.process

# A parent whose child leaves its session and forks a grandchild whose parent then dies; all print a dot and sleep.
TREE = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
sys.stdout.write(".")
sys.stdout.flush()
time.sleep(600)
"""


def start(nonce: str, code: str = TREE, dots: int = 2) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], env={**os.environ, NODE_MARK: nonce, RUN_MARK: "demo-bcdfg"},
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(dots) == b"." * dots
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    process.stdout.close()
    return process.wait(10)


def test_the_whole_tree_dies_and_nothing_else() -> None:
    mine, other = new_nonce(), new_nonce()
    tree, neighbour = start(mine), start(other)
    try:
        assert len(find_marked(mine)) == 2
        assert {node.nonce: (node.run_id, len(node.pids)) for node in find_nodes()}.items() >= {
            (mine, ("demo-bcdfg", 2)), (other, ("demo-bcdfg", 2)),
        }  # fmt: skip
        assert kill_marked(mine) == 2
        assert find_marked(mine) == []
        assert end(tree) == -signal.SIGKILL
        assert len(find_marked(other)) == 2
        assert kill_marked(mine) == 0
    finally:
        kill_marked(other)
        end(neighbour)


def test_a_child_that_lost_its_mark_dies_with_its_parent() -> None:
    nonce = new_nonce()
    # As Ray's agents do: the environment is gone, and once the parent is killed so is the way to find it.
    code = """
import os, sys, time
if os.fork() == 0:
    child = "print('.', end='', flush=True); import time; time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-S", "-c", child], {})
sys.stdout.write("."); sys.stdout.flush()
time.sleep(600)
"""
    tree = start(nonce, code)
    found = find_marked(nonce)
    assert [NODE_MARK in process.environ() for process in found] == [True, False]
    assert kill_marked(nonce) == 2
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in found)
    end(tree)


def test_stopped_processes_die_too() -> None:
    nonce = new_nonce()
    tree = start(nonce)
    for process in find_marked(nonce):
        process.suspend()
    kill_marked(nonce)
    assert end(tree) == -signal.SIGKILL


def test_a_tree_that_forks_as_fast_as_it_can_dies() -> None:
    nonce = new_nonce()
    code = """
import os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.stdout.write("."); sys.stdout.flush()
while True:
    if os.fork() == 0:
        os.setsid()
    time.sleep(0.3)
"""
    tree = start(nonce, code, dots=1)
    time.sleep(0.5)
    assert kill_marked(nonce) >= 2
    assert find_marked(nonce) == []
    end(tree)


def test_a_zombie_and_a_reused_pid_are_not_alive() -> None:
    nonce = new_nonce()
    tree = start(nonce)
    created_at_s = psutil.Process(tree.pid).create_time()
    assert is_alive(tree.pid, created_at_s)
    assert not is_alive(tree.pid, created_at_s - 60)
    kill_marked(nonce)
    assert not is_alive(tree.pid, created_at_s)  # nobody has reaped it yet
    end(tree)
    assert not is_alive(tree.pid, created_at_s)


def test_an_empty_mark_kills_nobody() -> None:
    with pytest.raises(ValueError, match="names no node"):
        kill_marked("")
