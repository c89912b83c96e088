"""What a look at a run that is at work says of this very moment."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from a_cloud import PLACES, ACloud

from cluster.events import EventWriter, iso_time
from cluster.runs.run_view import view_run


def test_status_says_that_the_teacher_is_waited_for_while_it_is(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    cloud.attempt(1, PLACES[0], reason=None)
    node, now = EventWriter(cloud.store, 1, "node"), time.time()
    said = "waiting for the teacher since 2026-11-20 10:00:00 UTC: HTTP 503"
    node.emit("generation", rows=1, waiting=said, next_try_at=iso_time(now + 30))
    node.flush()
    view = view_run(cloud.root, "demo-x3fkd", is_alive=True, now=now + 10)
    assert view.teacher_wait == {"words": said, "next_try_in_s": pytest.approx(20, abs=0.2)}
    assert view.to_json()["teacher_wait"] == view.teacher_wait
    node.emit("generation", rows=2, waiting=None, next_try_at=None)
    node.close()
    assert view_run(cloud.root, "demo-x3fkd", is_alive=True).teacher_wait is None


def test_status_says_which_save_is_under_way_also_when_it_began_long_ago(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    cloud.attempt(1, PLACES[0], reason=None)
    node, now = EventWriter(cloud.store, 1, "node"), time.time()
    node.emit("saving", position=20)
    node.flush()
    saving = view_run(cloud.root, "demo-x3fkd", is_alive=True, now=now + 10).saving
    assert saving == {"step": 20, "for_s": pytest.approx(10, abs=0.5)}
    for number in range(21, 26):  # more batches than a look reads
        node.emit("step", step=number, saving=20, saving_since=iso_time(now))
        node.flush()
    view = view_run(cloud.root, "demo-x3fkd", is_alive=True, now=now + 100)
    assert view.to_json()["saving"] == {"step": 20, "for_s": pytest.approx(100, abs=0.5)}
    node.emit("save", position=20, stall_s=0.1, seconds=100.0, bytes=1, committed=True)
    node.close()
    assert view_run(cloud.root, "demo-x3fkd", is_alive=True).saving is None


def test_that_a_run_was_launched_is_no_news_once_it_is_at_work_and_why_it_moved_is(tmp_path: Path) -> None:
    cloud = ACloud(tmp_path)
    talk = EventWriter(cloud.store, 1, "supervisor")
    talk.emit("decision", action="relaunch", words="Starting; going to aws/us-east-1.")
    talk.flush()
    assert view_run(cloud.root, "demo-x3fkd", is_alive=True).words == "Starting; going to aws/us-east-1."
    cloud.attempt(1, PLACES[0], reason=None)
    assert view_run(cloud.root, "demo-x3fkd", is_alive=True).words == ""
    cloud.log.put_end(1, {"stop_reason": "lost"})
    cloud.attempt(2, PLACES[1], reason=None)
    talk.emit("decision", action="relaunch", words="Attempt 1, lost; going to aws/us-east-2.")
    talk.close()
    assert view_run(cloud.root, "demo-x3fkd", is_alive=True).words == "Attempt 1, lost; going to aws/us-east-2."
