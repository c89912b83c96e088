"""Quotas: asked of a server that speaks as AWS's Service Quotas does, else a new account's, labelled; never a guess."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alpaca_jobs.generation.offline_teacher import running
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_quota import quotas_of
from cluster.plan import Pricing
from cluster.price.offers import Offer
from cluster.price.quota import quota_by_default, quota_code

P4D = Offer("aws", "us-east-1", "use1-az1", "p4d.24xlarge", Pricing.SPOT, 10.0, "A100", 8, 96.0)


class ServiceQuotas(ThreadingHTTPServer):
    """Answers GetServiceQuota with `values[code]`, and with AWS's own error where there is none."""

    values: dict[str, float]
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: ServiceQuotas

    def do_POST(self) -> None:
        """One question, in AWS's JSON protocol."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["X-Amz-Target"] == "ServiceQuotasV20190624.GetServiceQuota"
        assert body["ServiceCode"] == "ec2"
        code = body["QuotaCode"]
        self.server.asked.append(code)
        value = self.server.values.get(code)
        answer = (
            {"__type": "NoSuchResourceException", "Message": "no"} if value is None else {"Quota": {"Value": value}}
        )
        self.send_response(400 if value is None else 200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def service(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceQuotas]:
    server = ServiceQuotas(("127.0.0.1", 0), _Handler)
    server.values, server.asked = {}, []
    monkeypatch.setenv("AWS_ENDPOINT_URL_SERVICE_QUOTAS", f"http://127.0.0.1:{server.server_address[1]}")
    with running(server):
        yield server


def test_the_accounts_own_quota_decides_and_each_is_asked_once(service: ServiceQuotas) -> None:
    service.values = {"L-7212CCBC": 128.0, "L-417A185B": 0.0}
    other_zone = Offer(**{**vars(P4D), "zone": "use1-az2"})
    on_demand = Offer(**{**vars(P4D), "pricing": Pricing.ON_DEMAND})
    found = quotas_of([P4D, other_zone, on_demand], AwsAccount())
    assert [str(found[one]) for one in (P4D, other_zone, on_demand)] == ["yes: 128 vCPUs"] * 2 + ["no: 0 vCPUs"]
    assert service.asked == ["L-7212CCBC", "L-417A185B"]
    two = quotas_of([P4D], AwsAccount(), num_nodes=2)[P4D]
    assert (two.needed, two.allows, two.source) == (192, False, "account")


def test_a_quota_that_aws_does_not_know_is_a_new_accounts_and_says_so(service: ServiceQuotas) -> None:
    found = quotas_of([P4D], AwsAccount())[P4D]
    assert (found.vcpus, found.source, found.allows) == (0, "new account", False)
    assert str(found) == "no: 0 vCPUs in a new account"
    assert "AWS refused reading quota L-7212CCBC in us-east-1" in found.why


def test_who_is_not_signed_in_is_asked_about_once(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    g5 = Offer("aws", "us-west-2", None, "g5.xlarge", Pricing.SPOT, 0.5, "A10G", 1, 4.0)
    found = quotas_of([P4D, g5], AwsAccount())
    assert {one.source for one in found.values()} == {"new account"}
    assert all(one.why.startswith("AWS wants credentials for reading quota L-7212CCBC") for one in found.values())


@pytest.mark.parametrize(
    ("machine", "pricing", "code", "vcpus"),
    [
        ("p4d.24xlarge", Pricing.SPOT, "L-7212CCBC", 0),
        ("p5.48xlarge", Pricing.SPOT, "L-C4BD4855", 0),
        ("p5en.48xlarge", Pricing.ON_DEMAND, "L-417A185B", 0),
        ("g6e.xlarge", Pricing.SPOT, "L-3819A6DF", 0),
        ("m6i.large", Pricing.SPOT, "L-34B43A08", 5),
        ("m6i.large", Pricing.ON_DEMAND, "L-1216C47A", 5),
        ("u-6tb1.56xlarge", Pricing.ON_DEMAND, None, None),
    ],
)
def test_each_family_has_its_own_quota(machine: str, pricing: Pricing, code: str | None, vcpus: int | None) -> None:
    offer = Offer("aws", "us-east-1", None, machine, pricing, 1.0, vcpus=2.0)
    assert quota_code(offer) == code
    assert quota_by_default(offer).vcpus == vcpus


def test_another_clouds_quota_is_unknown_and_unknown_is_said() -> None:
    offer = Offer("gcp", "us-central1", None, "a2-highgpu-8g", Pricing.SPOT, 1.0, "A100", 8, 96.0)
    found = quotas_of([offer], AwsAccount())[offer]
    assert (str(found), found.allows, found.why) == ("unknown", None, "quotas of gcp are not read here")
