"""The head's look at the other machines: a refused port and silence after a failure are a loss, an answer is none."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cluster.errors import NodeLost
from cluster.node.member import GroupWatch
from cluster.node.node_group import free_port


@pytest.fixture
def answering() -> Iterator[int]:
    """A port where everybody is let in."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that answers nobody, as the address of a machine that was taken away: its queue is full."""
    with ExitStack() as open_ones:
        server = open_ones.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            caller = open_ones.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def look(*ports: int) -> list[str]:
    """What a watch over these ports says was lost, looking closely after a failure."""
    lost: list[NodeLost] = []
    watch = GroupWatch([("127.0.0.1", port) for port in ports], on_lost=lost.append)
    watch.look_closely(for_s=1.5, silent_s=1.0)
    watch.close()
    return [str(one) for one in lost]


def test_a_machine_whose_port_refuses_is_lost(answering: int) -> None:
    (words,) = look(answering, free_port())
    assert words.startswith("machine 2 of the attempt (127.0.0.1) is gone: nothing answers")


def test_a_machine_that_is_silent_after_a_failure_is_lost(answering: int, silent: int) -> None:
    (words,) = look(answering, silent)
    assert words == "machine 2 of the attempt (127.0.0.1) is gone: it has stopped answering."


def test_machines_that_answer_are_not_what_failed(answering: int) -> None:
    assert look(answering, answering) == []
