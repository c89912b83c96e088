"""A node on a paid machine gives a sign of life every minute: until when it lived can be told by that."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints.store import Store
from cluster.control import CancelWatch
from cluster.events import seconds_of, utc_now
from cluster.node import main
from cluster.node.attempt_context import Interruption
from cluster.node.leave_time import LeaveTime
from cluster.sign_of_life import SignOfLife, last_sign_s


def test_a_sign_is_given_at_once_and_then_every_minute(tmp_path: Path) -> None:
    store, now = Store.open(f"file://{tmp_path}/store").child("demo-x3fkd"), [0.0]
    assert last_sign_s(store, 2) is None
    sign = SignOfLife(store, 2, clock=lambda: now[0])
    for at, is_given in ((0.0, True), (59.0, False), (60.0, True), (119.0, False)):
        store.put("control/alive-000002.json", b"no sign")
        now[0] = at
        sign.give()
        assert (last_sign_s(store, 2) is not None) is is_given
    assert not CancelWatch(store).open_cancels()  # which lie in the same folder


@pytest.mark.parametrize("paid", [True, False])
def test_a_node_gives_signs_where_its_machine_is_paid_for(tmp_path: Path, paid: bool) -> None:
    store, began = Store.open(f"file://{tmp_path}/store").child("demo-x3fkd"), utc_now()
    arguments = main.NodeArguments(
        store.uri, "demo-x3fkd", 1, {}, tmp_path, machine_started_at=began if paid else ""
    )  # fmt: skip
    main._poll(store, Interruption(), arguments, LeaveTime())()
    assert ((last_sign_s(store, 1) or 0.0) >= seconds_of(began)) is paid
