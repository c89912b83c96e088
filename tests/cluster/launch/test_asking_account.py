"""Asking an account before a launch: a server that speaks as AWS does, also a slow one, and what a plan makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.generation.offline_teacher import running
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import change_job, parse_job
from cli import starting
from cluster.cloud.aws_account import AwsAccount
from cluster.errors import PlanError
from cluster.launch.asking_account import has_credentials, plan_within_account
from cluster.launch.findings import Level
from cluster.launch.gpu_quotas import gpu_quotas
from cluster.launch.planner import plan_launch
from cluster.plan import LaunchPlan, Pricing
from cluster.price.account_limits import AccountLimits
from cluster.price.offers import Offer, PriceList

G_SPOT, G_ON_DEMAND, P_SPOT = "L-3819A6DF", "L-DB2E81BA", "L-7212CCBC"


class Cloud(ThreadingHTTPServer):
    """Answers DescribeRegions and GetServiceQuota: `values[code, region]` vCPUs."""

    daemon_threads = True
    enabled: tuple[str, ...]
    values: dict[tuple[str, str], float]
    asked: list[tuple[str, str]]
    waits_s: float


class _Handler(BaseHTTPRequestHandler):
    server: Cloud

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.waits_s)
        if b"DescribeRegions" in body:
            items = "".join(f"<item><regionName>{one}</regionName></item>" for one in self.server.enabled)
            text = f"<DescribeRegionsResponse><regionInfo>{items}</regionInfo></DescribeRegionsResponse>"
            self._answer(200, "text/xml", text.encode())
            return
        region = self.headers["Authorization"].split("/")[2]
        key = (json.loads(body)["QuotaCode"], region)
        self.server.asked.append(key)
        value = self.server.values.get(key)
        if value is None:
            self._answer(400, "application/x-amz-json-1.1", b'{"__type": "NoSuchResourceException", "Message": "no"}')
        elif value < 0:
            self._answer(400, "application/x-amz-json-1.1", b'{"__type": "AccessDeniedException", "Message": "no"}')
        else:
            self._answer(200, "application/x-amz-json-1.1", json.dumps({"Quota": {"Value": value}}).encode())

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def cloud(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    server = Cloud(("127.0.0.1", 0), _Handler)
    server.enabled, server.values, server.asked, server.waits_s = ("us-east-1", "us-west-2"), {}, [], 0.0
    for service in ("SERVICE_QUOTAS", "EC2"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", f"http://127.0.0.1:{server.server_address[1]}")
    with running(server):
        yield server


def job(**changes: Any) -> JobSpec:
    fixed = {"compute.infra": ["aws"], "compute.rows_apart": False, "train.micro_batch_size": 4, "train.method": "lora"}
    return change_job(
        parse_job(example_text("alpaca-7b")), fixed | {key.replace("__", "."): one for key, one in changes.items()}
    )


def offer(region: str, price: float, gpus: str = "A10G:4", pricing: Pricing = Pricing.SPOT) -> Offer:
    name, _, count = gpus.partition(":")
    kind = "g5.12xlarge" if name == "A10G" else "p4d.24xlarge"
    return Offer("aws", region, None, kind, pricing, price, name, int(count), 48.0 if name == "A10G" else 96.0, 192.0)


def asked(spec: JobSpec, *offers: Offer, **more: Any) -> LaunchPlan:
    prices = PriceList(offers)

    def plan(limits: AccountLimits) -> LaunchPlan:
        return plan_launch(spec, run_id="a-bcdfg", offers=prices, limits=limits, code_version="0")

    return plan_within_account(spec, prices, plan, **more)[0]


def test_places_without_quota_and_regions_that_are_off_are_left_out(cloud: Cloud) -> None:
    cloud.values = {(G_SPOT, "us-east-1"): 0.0, (G_SPOT, "us-west-2"): 96.0}
    found = asked(
        job(compute__gpus="A10G:4"), offer("us-east-1", 1.0), offer("us-west-2", 2.0), offer("eu-south-1", 0.5)
    )  # fmt: skip
    assert [place.region for place in found.candidates] == ["us-west-2"]
    notes = "\n".join(found.notes)
    assert "has not switched them on: eu-south-1." in notes
    assert "no quota for them: aws/us-east-1 spot (0 vCPUs)." in notes
    assert sorted(cloud.asked) == [(G_SPOT, "us-east-1"), (G_SPOT, "us-west-2")], "each once"


def test_auto_takes_another_machine_where_the_best_one_has_no_quota(cloud: Cloud) -> None:
    cloud.values = {(P_SPOT, "us-east-1"): 0.0, (G_SPOT, "us-east-1"): 64.0}
    found = asked(job(compute__gpus="auto"), offer("us-east-1", 1.0, "A100:8"), offer("us-east-1", 9.0))
    assert [place.gpus for place in found.candidates] == ["A10G:4"]
    assert cloud.asked == [(P_SPOT, "us-east-1"), (G_SPOT, "us-east-1")]


def test_no_quota_anywhere_is_refused_before_anything_starts(cloud: Cloud) -> None:
    cloud.values = {(G_SPOT, "us-east-1"): 0.0, (G_SPOT, "us-west-2"): 8.0}
    with pytest.raises(PlanError) as caught:
        asked(job(compute__gpus="A10G:4"), offer("us-east-1", 1.0), offer("us-west-2", 2.0))
    assert str(caught.value).startswith(
        "This AWS account has no quota for any place that the job may go to: aws/us-east-1 spot (0 vCPUs), "
        "aws/us-west-2 spot (8 vCPUs); 1 x g5.12xlarge need 48 vCPUs. Ask AWS for more"
    )


def test_what_is_not_allowed_to_ask_is_a_note_and_no_refusal(cloud: Cloud) -> None:
    cloud.values = {(G_SPOT, "us-east-1"): -1.0}
    found = asked(job(compute__gpus="A10G:4"), offer("us-east-1", 1.0))
    assert [place.region for place in found.candidates] == ["us-east-1"]
    assert found.notes[-1].startswith("Its quotas could not be asked: AWS does not allow reading quota L-3819A6DF")


def test_a_quota_that_aws_does_not_know_limits_nothing(cloud: Cloud) -> None:
    found = asked(job(compute__gpus="A10G:4"), offer("us-east-1", 1.0))
    assert len(found.candidates) == 1
    assert not any("quota" in words for words in found.notes)


def test_an_account_that_does_not_answer_costs_seconds_and_no_more(cloud: Cloud) -> None:
    cloud.waits_s = 40.0
    begin = time.monotonic()
    found = asked(job(compute__gpus="A10G:4"), offer("us-east-1", 1.0), patience_s=0.3)
    assert time.monotonic() - begin < 30
    assert [place.region for place in found.candidates] == ["us-east-1"]
    assert "AWS took too long to answer." in found.notes[-1]


def test_who_is_not_signed_in_gets_the_plan_with_a_note(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert not has_credentials()
    found = asked(job(compute__gpus="A10G:4"), offer("us-east-1", 1.0))
    assert [place.region for place in found.candidates] == ["us-east-1"]
    assert "AWS wants credentials for listing regions" in found.notes[-1]
    assert cloud.asked == []


def test_credentials_are_at_hand_by_variable_or_by_file(tmp_path: Any) -> None:
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "a"), "AWS_CONFIG_FILE": str(tmp_path / "b")}
    assert not has_credentials(nowhere)
    assert has_credentials(nowhere | {"AWS_PROFILE": "x"})
    (tmp_path / "a").write_text("[default]")
    assert has_credentials(nowhere)


def test_launch_asks_and_validate_does_not(cloud: Cloud) -> None:
    cloud.enabled = ("us-west-2",)
    spec = job(compute__gpus="A10G:4")
    told = starting.price(spec, contact=True)
    assert {place.region for place in told.plan.candidates} == {"us-west-2"}
    assert cloud.asked == [(G_SPOT, "us-west-2")]
    assert told.estimate is not None
    assert "aws/us-west-2" in told.estimate.candidates[0].placement.name
    alone = starting.price(spec, contact=False)
    assert len({place.region for place in alone.plan.candidates}) > 1
    assert len(cloud.asked) == 1


def test_doctor_says_what_gpu_machines_the_account_may_have_in_every_region(cloud: Cloud) -> None:
    cloud.enabled = ("eu-west-1", "us-east-1", "us-west-2")
    cloud.values = {(P_SPOT, region): 0.0 for region in cloud.enabled}
    cloud.values |= {(G_SPOT, "us-east-1"): 64.0, (G_SPOT, "us-west-2"): 192.0, (G_SPOT, "eu-west-1"): 0.0}
    none, some = sorted(gpu_quotas(AwsAccount(max_attempts=1)), key=lambda one: one.level.value)
    assert (some.level, some.what) == (Level.OK, "quota G on spot (L4, L40S, A10G, T4)")
    assert some.words == "vCPUs: us-west-2 192, us-east-1 64; 0 in 1 other region"
    assert (none.level, none.what) == (Level.NOTE, "quota P on spot (A100, V100)")
    assert none.words.startswith("0 vCPUs in all 3 regions: none can be started")
    assert none.command.endswith("/quotas?region=us-east-1")
    assert len(cloud.asked) == 5 * 3  # what AWS does not know is left out


def test_doctor_says_what_keeps_the_quotas_from_being_read(cloud: Cloud) -> None:
    cloud.values = {(P_SPOT, region): -1.0 for region in cloud.enabled}
    (found,) = gpu_quotas(AwsAccount(max_attempts=1))
    assert (found.level, found.what) == (Level.NOTE, "GPU quotas of AWS")
    assert "could not be asked: AWS does not allow reading quota" in found.words
