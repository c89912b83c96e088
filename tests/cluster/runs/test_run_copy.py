"""A whole run in another store: everything that it goes on from or tells, and nothing that rotted made whole again."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.events import utc_now
from cluster.other_machines import put_machines
from cluster.runs.run_copy import copy_whole_run
from cluster.runs.run_view import index_key, list_runs

_SAID = (
    "answers/request-000001/attempt-000001.json", "ledger/attempt-000001/batch-000001.json", "control/review.json",
    "control/limits-000001.json", "reports/attempt-000001.json", "estimate.json", "machines/i-0123.json",
    "events/000001-node-000001.json",
)  # fmt: skip
_ROWS = random.Random(1).randbytes(17 * 2**20)  # more than one piece


@pytest.fixture
def ended(runs: Any) -> tuple[Store, str]:
    """The root and id of a run that is over, with one object of every kind."""
    plan = runs.plan()
    store = runs.root.child(plan.run_id)
    store.put_once("job.json", {**plan.to_json(), "launched_at": utc_now()})
    runs.root.put_once(index_key(plan.run_id), {"job_name": "fake", "launched_at": utc_now()})
    log = AttemptLog(store, LAYOUT)
    log.claim(1, {"placement": plan.candidates[0].to_json()})
    log.put_base(1, None)
    writer = CommitWriter(store, LAYOUT, CommitRef("train", 10, 1))
    writer.put("own", b"10")
    writer.publish(meta={})
    log.put_end(1, {"stop_reason": "done"})
    store.put("inputs/rows/rows.json", _ROWS)
    store.put("inputs/files/empty.json", b"")
    store.put("tracking/wandb/run.wandb", b"\0\1")
    store.put("control/cancel-0.json", b"{}")
    put_machines(store, plan)
    for key in _SAID:
        store.put_once(key, {"events": []} if key.startswith("events/") else {"said": key})
    return runs.root, plan.run_id


def _copied(source: Store, run_id: str, destination: Store) -> list[str]:
    return list(copy_whole_run(source, destination, run_id, is_alive_here=False))


def test_all_that_a_run_goes_on_from_and_tells_is_copied(ended: tuple[Store, str], tmp_path: Any) -> None:
    (root, run_id), other = ended, Store.open(f"file://{tmp_path}/other")
    copied = _copied(root, run_id, other)
    assert copied[0] == "train 10 (attempt 1)"
    assert {"2 objects of inputs/", "1 object of answers/", "estimate.json", "control/review.json"} <= set(copied)
    here, there = root.child(run_id), other.child(run_id)
    assert set(here.list()) - set(there.list()) == {"control/cancel-0.json"}, "nobody wants the copy to stop"
    assert there.get("inputs/rows/rows.json") == _ROWS
    assert all(there.get(key) == here.get(key) for key in (*_SAID, "control/machines-000001.json"))
    assert list_runs(other) == [run_id]
    assert _copied(root, run_id, other) == copied


@pytest.mark.parametrize("key", ["job.json", "ledger/attempt-000001/batch-000001.json", "index"])
def test_a_flipped_digit_is_not_made_whole_by_copying(ended: tuple[Store, str], tmp_path: Any, key: str) -> None:
    (root, run_id), other = ended, Store.open(f"file://{tmp_path}/other")
    full = index_key(run_id) if key == "index" else f"{run_id}/{key}"
    good = root.get(full)
    bad = good.replace(b"fake", b"fbke") if b"fake" in good else good.replace(b"said", b"sbid")
    assert bad != good
    root.put(full, bad)
    with pytest.raises(Damaged, match="its own digest does not fit it"):
        _copied(root, run_id, other)
    assert list_runs(other) == []


def test_a_report_that_rotted_is_named_and_stays_known_for_it(
    ended: tuple[Store, str], tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (root, run_id), other = ended, Store.open(f"file://{tmp_path}/other")
    key = "reports/attempt-000001.json"
    root.child(run_id).put(key, root.child(run_id).get(key).replace(b"said", b"sbid"))
    with caplog.at_level(logging.WARNING):
        _copied(root, run_id, other)
    assert f"{key} is damaged" in caplog.text
    assert other.child(run_id).get_json(key) is None


def test_an_object_that_arrives_changed_is_found(ended: tuple[Store, str], tmp_path: Any) -> None:
    (root, run_id), other = ended, Store.open(f"file://{tmp_path}/other")
    inner = other._driver

    class Rotting:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def write(self, key: str, data: bytes | memoryview, **more: Any) -> None:
            inner.write(key, data[:-1] if "wandb" in key else data, **more)

    with pytest.raises(Damaged, match=r"run\.wandb is damaged: what was read at .* is not what lies here now"):
        _copied(root, run_id, Store(Rotting()))  # type: ignore[arg-type]
    assert list_runs(other) == []


def test_a_run_that_went_on_elsewhere_is_not_copied_over(ended: tuple[Store, str], tmp_path: Any) -> None:
    (root, run_id), other = ended, Store.open(f"file://{tmp_path}/other")
    _copied(root, run_id, other)
    AttemptLog(other.child(run_id), LAYOUT).claim(2, {"placement": {}})
    before = other.list()
    with pytest.raises(AlreadyExists, match=r"000002\.claim\.json says .* nothing was copied"):
        _copied(root, run_id, other)
    assert other.list() == before
