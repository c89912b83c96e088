"""A zombie, stopped with SIGSTOP and continued after its successor started, changes nothing, pays nothing, and goes.

What was on its way to the store or to the teacher at the very moment of the stop arrives when the process goes on, as a
packet on the wire would: one put or delete, and the requests in flight. Nothing of that counts, and nothing new begins.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec_io import job_to_dict
from checkpoints.errors import Superseded
from checkpoints.keys import CommitRef
from cluster.node.ledger import count_asked
from cluster.node.train_worker import ExportOrder, TrainWorker
from cluster.recovery import StopReason

IN_FLIGHT = 2  # the job's one actor keeps two requests under way

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_zombie_generator_commits_no_row_and_asks_for_nothing_more(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked.jsonl"
    monkeypatch.setenv("ALPACA_JOBS_OFFLINE_LOG", str(asked))
    bench.create(data={"num_rows": 1000})
    node = bench.start()
    bench.wait_reached(node, "generate", 3)
    bench.signal_tree(node, signal.SIGSTOP)
    bench.supersede(2)
    before, rows = bench.contents(), bench.commits("generate")
    sent = count_asked(bench.store).sent
    answered = len(asked.read_text().splitlines())
    bench.signal_tree(node, signal.SIGCONT)
    bench.wait_gone(node, "end of the zombie", timeout_s=60)
    after = bench.contents()
    assert {key: after.get(key) for key in before} == before
    assert bench.commits("generate") == rows
    arrived = sorted(key.partition("/")[0] for key in after.keys() - before.keys())
    assert arrived.count("answers") <= IN_FLIGHT
    assert arrived.count("ledger") <= 1  # its requests were not sent: see the next line
    assert len(asked.read_text().splitlines()) - answered <= IN_FLIGHT
    assert count_asked(bench.store).sent - sent <= IN_FLIGHT
    assert {json.loads(line)["status"] for line in asked.read_text().splitlines()} >= {200}


def test_a_zombie_trainer_commits_and_deletes_nothing(bench: Any) -> None:
    bench.create()
    node = bench.start()
    bench.wait_reached(node, "train", 10)  # three saves are behind it, so retention has begun to delete
    bench.signal_tree(node, signal.SIGSTOP)
    bench.supersede(2)
    before, counting = bench.contents(), bench.commits("train")
    bench.signal_tree(node, signal.SIGCONT)
    bench.wait_gone(node, "end of the zombie", timeout_s=60)
    after, left = bench.contents(), bench.commits("train")
    assert left[:2] == counting[:2]
    assert set(left) <= set(counting)
    assert len(counting) - len(left) <= 1  # a delete that was on its way; never of the newest two, never of a base
    assert all(after[key] == before[key] for key in before.keys() & after.keys())
    # A save that was in flight may leave shards in the zombie's own folder: they are no commit that counts.
    assert all("/attempt-000001/" in key for key in after.keys() - before.keys())


def test_a_zombie_exports_nothing(bench: Any, tmp_path: Path) -> None:
    """The export's own code, in this process, on a run whose training is done: the moment is too short to hit."""
    bench.create(data={"num_rows": 16}, train={"max_steps": 4})
    node = bench.start()
    assert bench.wait_exit(node) is StopReason.DONE
    exported = LAYOUT.manifest_key(CommitRef("export", 0, 1))
    assert bench.store.exists(exported)
    bench.log.claim(2, {})
    bench.log.put_base(2, bench.commits("train")[0])
    bench.log.claim(3, {})
    before = bench.contents()
    worker = TrainWorker(0)
    rows = [row for part in reversed(bench.commits("generate")) for row in bench.rows_of(part)]
    job = job_to_dict(bench.plan.job)
    order = ExportOrder(
        job=job, store_uri=bench.plan.store_uri, run_id=bench.plan.run_id, attempt=2, ref=bench.commits("train")[0],
        scratch=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(Superseded):
        worker.export(order, worker.tokenize(job, rows, str(tmp_path)))
    assert bench.contents() == before
