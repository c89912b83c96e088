"""One flipped digit in a record of a run: what the run goes on from stops it in words, what only tells is left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import LimitsSpec, TeacherSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import Damaged
from checkpoints.fence import Fence
from checkpoints.store import Store
from cluster.cloud.machine_records import keep_gone, kept_machines
from cluster.cloud.run import RUN_VARIABLE, SESSION_VARIABLE, STORE_VARIABLE, CloudRun
from cluster.control import CancelWatch, answer_cancels, ask_cancel
from cluster.event_reading import EventReader, read_events
from cluster.events import EventWriter
from cluster.job_record import ESTIMATE_KEY, JOB_KEY, read_estimate, read_job
from cluster.node.batch_records import BatchRecords
from cluster.node.ledger import Ledger, answer_key, batch_key, count_asked
from cluster.node.limits import put_limits, read_limits
from cluster.plan import Pricing
from cluster.runs.machines import CloudMachine
from cluster.runs.report import read_report, report_key
from cluster.runs.run_view import read_plan

PRICED = TeacherSpec(model="m", price_per_million_input_usd=1.0, price_per_million_output_usd=10.0)
MACHINE = CloudMachine(
    "aws", "us-east-1", "i-0a1", "g5.xlarge", Pricing.SPOT, "demo-x3fkd", "demo", "terminated", 0.0, 60.0
)


@pytest.fixture
def root(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def flip(store: Store, key: str) -> None:
    """What stays JSON, and says something else: only its digest tells."""
    data = store.get(key)
    store.put(key, data.replace(b'"nonce":"', b'"nonce":"0', 1))
    assert store.get(key) != data


def _load_ledger(store: Store) -> None:
    log = AttemptLog(store, LAYOUT)
    Ledger(store, attempt=2, fence=Fence(log, 2), teacher=PRICED).load()


def _open_session(store: Store) -> None:
    root = store.uri.rpartition("/")[0]
    CloudRun.open({STORE_VARIABLE: root, RUN_VARIABLE: "demo-x3fkd", SESSION_VARIABLE: "000001"})


@pytest.mark.parametrize(
    ("key", "read", "advice"),
    [
        (JOB_KEY, read_job, "the run cannot go on without it. Put back"),
        (batch_key(1, 1), _load_ledger, "it is asked for nothing more. Put back"),
        (batch_key(1, 1), count_asked, "it is asked for nothing more. Put back"),
        (batch_key(1, 1), lambda store: BatchRecords(store, "demo").load_open(), "it is asked for nothing more"),
        (answer_key(1, 1), _load_ledger, "it is asked for nothing more. Put back"),
        ("control/limits-000001.json", lambda store: read_limits(store, LimitsSpec()), "Resume the run with the"),
        ("control/session-000001.json", _open_session, "Put back the object's earlier version"),
    ],
)
def test_what_a_run_goes_on_from_is_not_read_when_it_is_damaged(
    root: Store, key: str, read: Callable[[Store], object], advice: str
) -> None:
    store = root.child("demo-x3fkd")
    store.put_once(key, {"said": 1})
    flip(store, key)
    with pytest.raises(Damaged, match=f"{re.escape(f'{store.uri}/{key}')} is damaged: .*digest.*{re.escape(advice)}"):
        read(store)


def test_a_run_whose_job_is_damaged_is_not_called_missing(root: Store) -> None:
    root.child("demo-x3fkd").put(JOB_KEY, b"{")
    with pytest.raises(Damaged, match=r"demo-x3fkd/job\.json is damaged"):
        read_plan(root, "demo-x3fkd")


def test_limits_of_a_later_resume_stand_for_damaged_ones(root: Store) -> None:
    put_limits(root, max_usd=5.0, teacher_max_usd=None)
    flip(root, "control/limits-000001.json")
    put_limits(root, max_usd=7.0, teacher_max_usd=None)
    assert read_limits(root, LimitsSpec()).max_usd == 7.0


def test_a_damaged_answer_lets_its_cancel_count_until_the_run_is_resumed_again(
    root: Store, caplog: pytest.LogCaptureFixture
) -> None:
    ask_cancel(root)
    answer_cancels(root)
    (answered,) = [key for key in root.list("control/") if "answered" in key]
    flip(root, answered)
    watch = CancelWatch(root)
    assert len(watch.open_cancels()) == len(watch.open_cancels()) == 1
    assert caplog.text.count(f"{answered} is damaged") == 1
    assert "resume the run" in caplog.text
    answer_cancels(root)
    assert CancelWatch(root).open_cancels() == frozenset()


def test_a_damaged_batch_of_events_is_named_and_the_others_are_read(
    root: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        writer = EventWriter(root, 1, "node")
        writer.emit("step", step=number)
        writer.close()
    flip(root, "events/000001-node-000002.json")
    assert [event.fields["step"] for event in read_events(root)] == [0, 2]
    assert "events/000001-node-000002.json is damaged" in caplog.text
    reader = EventReader(root)
    assert [event.fields["step"] for event in reader.poll()] == [0, 2]
    caplog.clear()
    assert reader.poll(relist=True) == []
    assert caplog.text == "", "it is named once"


def test_other_records_that_only_tell_are_named_and_gone_without(root: Store, caplog: pytest.LogCaptureFixture) -> None:
    keep_gone(root, [MACHINE])
    assert kept_machines(root) == {"i-0a1": MACHINE}
    root.put_once(ESTIMATE_KEY, {"places": []})
    root.put_once(report_key(1), {"attempts": []})
    for key in ("machines/i-0a1.json", ESTIMATE_KEY, report_key(1)):
        flip(root, key)
    assert (kept_machines(root), read_estimate(root), read_report(root)) == ({}, None, None)
    assert caplog.text.count(" is damaged: ") == 3
