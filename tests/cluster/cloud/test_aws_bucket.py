"""`store: auto` on a pretend S3: a private bucket near the compute, named before it is made, and removed with care."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.spec import JobSpec
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_bucket import bucket_name, buckets_of_ours, find_bucket, make_bucket, remove_bucket
from cluster.errors import WrongInput
from cluster.launch.store_auto import bucket_for, preview
from cluster.plan import LaunchPlan, Placement, Pricing

ACCOUNT = "123456789012"  # moto's


@pytest.fixture
def account(aws: str) -> AwsAccount:
    return AwsAccount()


def a_plan(infra: str = "aws", region: str = "us-west-2") -> LaunchPlan:
    body = {
        "name": "demo", "store": "auto", "data": {"num_rows": 8, "teacher": "offline"},
        "train": {"recipe": "alpaca", "model": "tiny-llama"}, "compute": {"infra": [infra], "workers": 1},
    }  # fmt: skip
    place = Placement(infra, region, None, "m6i.large", Pricing.SPOT, 0.03, 1)
    return LaunchPlan("demo-x3fkd", JobSpec.model_validate(body), "auto", (place,), 1, "0+test")


def test_the_bucket_is_named_first_and_made_private_where_the_run_goes_first(account: AwsAccount) -> None:
    bucket = bucket_for(a_plan(), account)
    assert (bucket.name, bucket.region, bucket.exists) == (bucket_name(ACCOUNT, "us-west-2"), "us-west-2", False)
    assert "a new private bucket in us-west-2" in str(bucket)
    s3 = account.client("s3", "us-west-2")
    assert s3.list_buckets()["Buckets"] == []  # looking makes nothing
    make_bucket(account, bucket)
    make_bucket(account, bucket)  # again without harm
    assert s3.get_bucket_location(Bucket=bucket.name)["LocationConstraint"] == "us-west-2"
    closed: dict[str, Any] = s3.get_public_access_block(Bucket=bucket.name)["PublicAccessBlockConfiguration"]
    assert set(closed.values()) == {True}
    assert len(closed) == 4
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket.name)["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rule["Status"] == "Enabled"
    again = bucket_for(a_plan(), account)
    assert again.exists
    assert "your private bucket in us-west-2, made earlier" in str(again)


def test_it_works_in_the_region_that_is_no_constraint_and_a_store_can_be_opened_in_it(account: AwsAccount) -> None:
    bucket = find_bucket(account, "us-east-1")
    make_bucket(account, bucket)
    store = Store.open(bucket.uri)
    store.put_once("probe.json", {})
    assert store.list() == ["probe.json"]
    assert [one.name for one in buckets_of_ours(account)] == [bucket.name]
    assert [one.region for one in buckets_of_ours(account)] == ["us-east-1"]


def test_a_bucket_goes_only_when_it_is_ours_and_empty(account: AwsAccount) -> None:
    bucket = find_bucket(account, "us-east-1")
    make_bucket(account, bucket)
    s3 = account.client("s3")
    s3.put_object(Bucket=bucket.name, Key="runs/index/other.json", Body=b"{}")
    assert not remove_bucket(account, bucket.uri)
    s3.delete_object(Bucket=bucket.name, Key="runs/index/other.json")
    assert remove_bucket(account, bucket.uri)
    assert not find_bucket(account, "us-east-1").exists
    for name in ("mine", "alpaca-jobs-mine"):
        s3.create_bucket(Bucket=name)
        with pytest.raises(WrongInput, match=f"{name} was not made by `store: auto`, so it is not removed"):
            remove_bucket(account, f"s3://{name}/runs")


def test_elsewhere_it_says_how_to_make_one() -> None:
    with pytest.raises(WrongInput, match=r"gcloud storage buckets create gs://NAME --location=us-central1"):
        preview(a_plan("gcp", "us-central1"))


def test_a_dry_run_asks_nobody() -> None:
    assert preview(a_plan()).store_uri == "s3://alpaca-jobs-ACCOUNT-us-west-2/runs"
