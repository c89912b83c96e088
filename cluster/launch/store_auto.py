"""`store: auto` on a cloud: which bucket that is, said before it is made."""

from __future__ import annotations

from dataclasses import replace

from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_bucket import Bucket, find_bucket
from cluster.errors import WrongInput
from cluster.plan import LaunchPlan

_BY_HAND = {
    "gcp": "gcloud storage buckets create gs://NAME --location={region} --public-access-prevention",
    "azure": "az storage container create --name NAME --account-name ACCOUNT",
}


def bucket_for(plan: LaunchPlan, account: AwsAccount) -> Bucket:
    """The bucket that a launch of this plan would use: in the region that it goes to first.

    Raises:
        WrongInput: the plan's first place is on a cloud where this makes no bucket; says how to make one.
        NoCredentials, CloudError: AWS does not say.
    """
    return find_bucket(account, _region(plan))


def preview(plan: LaunchPlan) -> LaunchPlan:
    """The plan with a name in the place of the one that only the account knows; asks nobody."""
    return replace(plan, store_uri=f"s3://alpaca-jobs-ACCOUNT-{_region(plan)}/runs")


def _region(plan: LaunchPlan) -> str:
    first = plan.candidates[0]
    if first.infra != "aws":
        how = _BY_HAND.get(first.infra, "aws s3 mb s3://NAME").format(region=first.region)
        raise WrongInput(
            f"store is auto, and the run goes to {first.name} first; buckets are made by themselves on AWS only. Make "
            f"one near it ({how}) and name it in the job: store: s3://NAME/runs, gs://NAME/runs or az://NAME/runs."
        )
    return first.region
