"""The notice watch against pretend metadata services that speak as AWS, GCP and Azure do."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster.exits import Notice, reason_of_exit
from cluster.node.metadata import NoAnswer
from cluster.node.notice import NoticeWatch, source_for, watch_for_notice
from cluster.node.notice_aws import AwsNotices
from cluster.node.notice_azure import AzureNotices
from cluster.node.notice_gcp import GcpNotices
from cluster.recovery import StopReason

NOW = 1_763_726_400.0  # 2025-11-21T12:00:00Z
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
EVENTS = "/metadata/scheduledevents"


def _helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metadata_server", Path(__file__).with_name("metadata_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


metadata_server = _helper().metadata_server


@pytest.fixture
def aws() -> Iterator[Any]:
    with metadata_server() as server:
        yield server


@pytest.fixture
def gcp() -> Iterator[Any]:
    with metadata_server(Metadata_Flavor="Google") as server:
        server.paths = {PREEMPTED: "FALSE", MAINTENANCE: "NONE"}
        yield server


@pytest.fixture
def azure() -> Iterator[Any]:
    with metadata_server(Metadata="true") as server:
        server.paths = {"/metadata/instance/compute/name": "node-1", EVENTS: json.dumps({"Events": []})}
        yield server


class TestAws:
    def test_nothing_is_planned_as_long_as_the_paths_are_not_there(self, aws: Any) -> None:
        assert AwsNotices(aws.url).look() is None
        assert aws.asked == [ACTION, REBALANCE]
        assert len(aws.tokens) == 1

    def test_an_interruption_says_how_long_is_left(self, aws: Any) -> None:
        aws.paths[ACTION] = '{"action": "terminate", "time": "2025-11-21T12:02:00Z"}'
        heard = AwsNotices(aws.url, clock=lambda: NOW + 5).look()
        assert heard is not None
        assert heard.seconds_left == 115
        assert heard.words == "AWS will terminate this machine in 115 s."

    def test_a_wrong_clock_makes_no_more_of_it_than_aws_promises(self, aws: Any) -> None:
        aws.paths[ACTION] = '{"action": "stop", "time": "2025-11-21T12:02:00Z"}'
        late, early = (AwsNotices(aws.url, clock=lambda at=NOW + off: at).look() for off in (900, -900))
        assert late is not None
        assert early is not None
        assert (late.seconds_left, early.seconds_left) == (0, 120)

    def test_hibernation_does_not_wait(self, aws: Any) -> None:
        aws.paths[ACTION] = '{"action": "hibernate"}'
        heard = AwsNotices(aws.url).look()
        assert heard is not None
        assert heard.seconds_left == 0

    def test_a_rebalance_recommendation_is_advice_without_a_time(self, aws: Any) -> None:
        aws.paths[REBALANCE] = '{"noticeTime": "2025-11-21T12:00:00Z"}'
        heard = AwsNotices(aws.url).look()
        assert heard is not None
        assert heard.seconds_left is None

    def test_a_token_that_is_not_taken_any_more_is_replaced(self, aws: Any) -> None:
        source = AwsNotices(aws.url)
        source.look()
        aws.tokens.append("somebody else's")
        assert source.look() is None
        assert len(aws.tokens) == 3

    def test_what_is_no_notice_is_refused_in_words(self, aws: Any) -> None:
        aws.paths[ACTION] = '{"when": "soon"}'
        with pytest.raises(NoAnswer, match="says what is no notice"):
            AwsNotices(aws.url).look()


class TestGcp:
    def test_the_answer_is_held_back_until_the_value_changes(self, gcp: Any) -> None:
        source = GcpNotices(gcp.host, hold_s=1)
        assert source.look() is None  # the first question is answered at once
        watch, heard = _watch(source)
        gcp.paths[PREEMPTED] = "TRUE"
        gcp.changed.set()
        assert heard.get(timeout=5) == Notice(StopReason.PREEMPTED, 20)
        watch.stop()

    def test_maintenance_that_ends_the_machine_is_a_notice_and_one_that_moves_it_is_none(self, gcp: Any) -> None:
        gcp.paths[MAINTENANCE] = "MIGRATE_ON_HOST_MAINTENANCE"
        assert GcpNotices(gcp.host).look() is None
        gcp.paths[MAINTENANCE] = "TERMINATE_ON_HOST_MAINTENANCE"
        heard = GcpNotices(gcp.host).look()
        assert heard is not None
        assert heard.seconds_left == 30


class TestAzure:
    def test_only_what_ends_this_very_machine_is_a_notice(self, azure: Any) -> None:
        event = {"EventStatus": "Scheduled", "NotBefore": "Fri, 21 Nov 2025 12:00:30 GMT"}
        others = [
            {**event, "EventType": "Preempt", "Resources": ["node-2"]},
            {**event, "EventType": "Freeze", "Resources": ["node-1"]},
        ]
        source = AzureNotices(azure.url, clock=lambda: NOW)
        azure.paths[EVENTS] = json.dumps({"Events": others})
        assert source.look() is None
        azure.paths[EVENTS] = json.dumps(
            {"Events": [*others, {**event, "EventType": "Preempt", "Resources": ["node-1"]}]}
        )
        heard = source.look()
        assert heard is not None
        assert (heard.seconds_left, heard.words) == (30, "Azure plans Preempt for this machine in 30 s.")

    def test_an_event_that_has_started_leaves_no_time(self, azure: Any) -> None:
        started = {"EventType": "Preempt", "EventStatus": "Started", "NotBefore": "", "Resources": ["node-1"]}
        azure.paths[EVENTS] = json.dumps({"Events": [started]})
        heard = AzureNotices(azure.url).look()
        assert heard is not None
        assert heard.seconds_left == 0


class TestWatch:
    def test_a_notice_is_passed_on_once_less_what_keeps_it_safe(self, aws: Any) -> None:
        aws.paths[ACTION] = '{"action": "terminate", "time": "2025-11-21T12:02:00Z"}'
        source = AwsNotices(aws.url, clock=lambda: NOW)
        source.pause_s = 0.01
        _, heard = _watch(source)
        assert heard.get(timeout=5) == Notice(StopReason.PREEMPTED, 110)
        assert heard.empty()

    def test_advice_is_said_once_and_the_watch_goes_on(self, aws: Any, caplog: pytest.LogCaptureFixture) -> None:
        aws.paths[REBALANCE] = '{"noticeTime": "2025-11-21T12:00:00Z"}'
        source = AwsNotices(aws.url, clock=lambda: NOW)
        source.pause_s = 0.01
        with caplog.at_level(logging.WARNING):
            _, heard = _watch(source)
            while aws.asked.count(REBALANCE) < 3:
                time.sleep(0.01)
            aws.paths[ACTION] = '{"action": "terminate", "time": "2025-11-21T12:02:00Z"}'
            heard.get(timeout=5)
        assert sum("more likely than others" in record.getMessage() for record in caplog.records) == 1

    def test_a_service_that_is_not_there_is_said_and_asked_again(self, caplog: pytest.LogCaptureFixture) -> None:
        with metadata_server() as gone:
            url = gone.url
        with caplog.at_level(logging.WARNING):
            watch, heard = _watch(AwsNotices(url))
            watch.stop()
            watch._thread.join(10)
        assert heard.empty()
        assert "cannot be read, and are asked for again" in caplog.text

    def test_each_cloud_has_its_own_and_others_have_none(self) -> None:
        kinds = {"aws": AwsNotices, "gcp": GcpNotices, "azure": AzureNotices}
        for infra, kind in kinds.items():
            assert isinstance(source_for(infra, {}), kind)
        assert watch_for_notice("local", lambda _: None, {}) is None
        assert watch_for_notice("lambda", lambda _: None, {}) is None
        assert watch_for_notice("aws", lambda _: None, {"AWS_EC2_METADATA_DISABLED": "true"}) is None


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_node_on_aws_hears_its_end_commits_what_it_has_and_leaves_with_the_code_skypilot_recovers_from(
    aws: Any, tmp_path: Path
) -> None:
    from alpaca_jobs.run_layout import LAYOUT
    from alpaca_jobs.spec import JobSpec
    from checkpoints.attempts import AttemptLog
    from checkpoints.reader import list_commits
    from checkpoints.store import Store
    from cluster.node.inputs import freeze_inputs
    from cluster.plan import LaunchPlan, Placement, Pricing

    data = {"teacher": "offline", "num_rows": 5000, "num_actors": 1, "concurrency": 2, "part_requests": 3}
    job = JobSpec.model_validate(
        {"name": "small", "data": data, "train": {"model": "tiny-llama"}, "compute": {"workers": 1}}
    )
    place = Placement("aws", "us-east-1", None, "m6i.large", Pricing.SPOT, 0.03, 1)
    root = Store.open(f"file://{tmp_path}/store")
    store = root.child("small-x")
    store.put_once("job.json", LaunchPlan("small-x", job, root.uri, (place,), 1, "0+test").to_json())
    freeze_inputs(job, store)
    environ = {**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.url}
    del environ["AWS_EC2_METADATA_DISABLED"]
    arguments = ["--store", root.uri, "--run", "small-x", "--attempt", "1", "--placement", json.dumps(place.to_json())]
    node = subprocess.Popen(
        [sys.executable, "-m", "cluster.node.main", *arguments, "--scratch", str(tmp_path / "scratch")],
        env=environ, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not list_commits(store, LAYOUT) and node.poll() is None:
            time.sleep(0.1)
        aws.paths[ACTION] = '{"action": "terminate", "time": "2999-01-01T00:00:00Z"}'
        assert reason_of_exit(node.wait(60)) is StopReason.PREEMPTED
    finally:
        node.kill()
    (record,) = AttemptLog(store, LAYOUT).records()
    assert record.end is not None
    assert record.end["stop_reason"] == "preempted"
    assert record.end["detail"].endswith("rows are committed.")


def _watch(source: Any) -> tuple[NoticeWatch, queue.Queue[Notice]]:
    heard: queue.Queue[Notice] = queue.Queue()
    watch = NoticeWatch(source, heard.put)
    watch.start()
    return watch, heard
