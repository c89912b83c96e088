"""A private bucket of our own on S3: made near the compute, found again, and removed only when it is empty and ours."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cluster.cloud.aws_account import AwsAccount
from cluster.errors import CloudError, WrongInput

PREFIX: Final = "alpaca-jobs-"
ABORT_AFTER_DAYS: Final = 7  # of an upload in parts that was never finished; a job's own longest upload takes hours
_TAG: Final = {"Key": "made-by", "Value": "alpaca-jobs"}
_FOLDER: Final = "runs"


@dataclass(frozen=True)
class Bucket:
    """A bucket that is there, or will be.

    Attributes:
        uri: what a job's `store` says to use it.
        exists: whether it was there when it was looked at.
    """

    name: str
    region: str
    exists: bool

    @property
    def uri(self) -> str:
        """The store in it."""
        return f"s3://{self.name}/{_FOLDER}"

    def __str__(self) -> str:
        if self.exists:
            return f"{self.uri} (your private bucket in {self.region}, made earlier)"
        return (
            f"{self.uri} (a new private bucket in {self.region}: no public access, unfinished uploads end after "
            f"{ABORT_AFTER_DAYS} days)"
        )


def bucket_name(account: str, region: str) -> str:
    """One name an account and region: buckets share one namespace with the world, so part of it is a digest."""
    return f"{PREFIX}{hashlib.sha256(account.encode()).hexdigest()[:10]}-{region}"


def find_bucket(account: AwsAccount, region: str) -> Bucket:
    """Our bucket of a region, whether it is there or not; changes nothing.

    Raises:
        NoCredentials, CloudError: AWS does not say; or a bucket of that name is somebody else's.
    """
    name = bucket_name(account.identity(), region)
    head = partial(account.client("s3", region).head_bucket, Bucket=name)
    try:
        found: dict[str, Any] = account.call(
            f"looking for bucket {name}", head, absent=("404", "NoSuchBucket"), default={}
        )
    except CloudError as exc:
        if exc.code == "403":
            words = f"A bucket {name} exists, and these credentials may not look into it. Name another: store: s3://..."
            raise CloudError(words, code=exc.code) from exc
        raise
    return Bucket(name, region, bool(found))


def make_bucket(account: AwsAccount, bucket: Bucket) -> None:
    """Make it; again without harm: settings that it has are set once more.

    Raises:
        NoCredentials, CloudError: AWS refused; a bucket without its settings is not left behind unsaid.
    """
    s3, name = account.client("s3", bucket.region), bucket.name
    place: dict[str, Any] = {}
    if bucket.region != "us-east-1":  # which S3 does not take as a constraint
        place = {"CreateBucketConfiguration": {"LocationConstraint": bucket.region}}
    create = partial(s3.create_bucket, Bucket=name, **place)
    account.call(f"making bucket {name}", create, absent=("BucketAlreadyOwnedByYou",), default={})
    closed = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    rule = {
        "ID": "end-unfinished-uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_AFTER_DAYS},
    }  # fmt: skip
    settings = (
        partial(s3.put_public_access_block, Bucket=name, PublicAccessBlockConfiguration=closed),
        partial(s3.put_bucket_lifecycle_configuration, Bucket=name, LifecycleConfiguration={"Rules": [rule]}),
        partial(s3.put_bucket_tagging, Bucket=name, Tagging={"TagSet": [_TAG]}),
    )
    for put in settings:
        account.call(f"setting up bucket {name}", put)


def remove_bucket(account: AwsAccount, store_uri: str) -> bool:
    """Remove the bucket of a store, if we made it and nothing is in it any more.

    Returns:
        False where something is left in it: then it stays.

    Raises:
        WrongInput: it is no bucket of ours.
        NoCredentials, CloudError: AWS refused.
    """
    name = store_uri.removeprefix("s3://").partition("/")[0]
    s3 = account.client("s3", _region_of(account, name))
    read = partial(s3.get_bucket_tagging, Bucket=name)
    untagged: dict[str, Any] = {"TagSet": []}
    tags = account.call(f"reading the tags of bucket {name}", read, absent=("NoSuchTagSet",), default=untagged)
    if not store_uri.startswith(f"s3://{PREFIX}") or _TAG not in tags["TagSet"]:
        raise WrongInput(
            f"{name} was not made by `store: auto`, so it is not removed. Do it yourself: aws s3 rb s3://{name}"
        )
    delete = partial(s3.delete_bucket, Bucket=name)
    try:
        account.call(f"removing bucket {name}", delete)
    except CloudError as exc:
        if exc.code == "BucketNotEmpty":
            return False
        raise
    return True


def buckets_of_ours(account: AwsAccount) -> list[Bucket]:
    """All buckets that `store: auto` has made in this account, by their names.

    Raises:
        NoCredentials, CloudError: AWS refused.
    """
    listed = account.call("listing buckets", lambda: account.client("s3").list_buckets())
    mine = bucket_name(account.identity(), "")
    names = [str(one["Name"]) for one in listed["Buckets"]]
    return [Bucket(name, name.removeprefix(mine), exists=True) for name in sorted(names) if name.startswith(mine)]


def _region_of(account: AwsAccount, name: str) -> str:
    ask = partial(account.client("s3").get_bucket_location, Bucket=name)
    return account.call(f"looking for bucket {name}", ask)["LocationConstraint"] or "us-east-1"
