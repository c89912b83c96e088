"""Machines of ours in an account of AWS: found by their tags, whoever started them, and taken down.

Source for when a machine ended: StateTransitionReason of DescribeInstances, "User initiated (2026-11-21 12:00:00 GMT)"
or "Service initiated (...)"; AWS shows a terminated instance for about an hour. Of one that turned itself off it
names no time: "User initiated" (cloud-custodian/cloud-custodian#6924).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from cluster.cloud.aws_account import AwsAccount
from cluster.plan import Pricing
from cluster.runs.machines import RUN_LABEL, CloudMachine

CLUSTER_TAG: Final = "skypilot-cluster-name"
CONTROLLER_PREFIX: Final = "sky-jobs-controller-"
_CONTROLLERS: Final = {"Name": f"tag:{CLUSTER_TAG}", "Values": [f"{CONTROLLER_PREFIX}*"]}
_ENDED: Final = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? (?:GMT|UTC)\)")
_AT_ONCE: Final = 8


def machines_of_run(account: AwsAccount, run_id: str, regions: Iterable[str]) -> list[CloudMachine]:
    """The machines that a run has or had, oldest first.

    One that is off, and of which AWS does not say since when, is left out: the run's own records do say that, and by
    AWS's it would look as if it had been paid for until now.

    Raises:
        CloudError: AWS refused or did not answer.
    """
    found = _in_regions(account, [{"Name": f"tag:{RUN_LABEL}", "Values": [run_id]}], sorted(set(regions)))
    return [one for one in found if one.is_billed or one.ended_at_s is not None]


def machines_of_ours(account: AwsAccount, regions: Sequence[str] | None = None) -> list[CloudMachine]:
    """Machines of all runs, and SkyPilot's job controllers, that exist now, stopped ones too.

    Args:
        regions: None for every region that the account has switched on.

    Raises:
        CloudError: AWS refused or did not answer.
    """
    states = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
    places = regions_of(account) if regions is None else sorted(regions)
    runs = _in_regions(account, [{"Name": "tag-key", "Values": [RUN_LABEL]}, states], places)
    return [*runs, *_in_regions(account, [_CONTROLLERS, states], places)]


def controllers(account: AwsAccount, regions: Iterable[str]) -> list[CloudMachine]:
    """SkyPilot's job controllers in some regions, those that ended within the hour included.

    Raises:
        CloudError: AWS refused or did not answer.
    """
    return _in_regions(account, [_CONTROLLERS], sorted(set(regions)))


def regions_of(account: AwsAccount) -> list[str]:
    """Regions that the account has switched on."""
    answer = account.call("listing regions", lambda: account.client("ec2").describe_regions())
    return sorted(str(one["RegionName"]) for one in answer["Regions"])


def terminate(account: AwsAccount, machines: Iterable[CloudMachine]) -> None:
    """Take machines down for good; those that are gone already are fine.

    Raises:
        CloudError: AWS refused or did not answer.
    """
    by_region: dict[str, list[str]] = {}
    for one in machines:
        by_region.setdefault(one.region, []).append(one.instance_id)
    for region, names in by_region.items():
        act = partial(account.client("ec2", region).terminate_instances, InstanceIds=names)
        account.call(
            f"terminating {', '.join(names)} in {region}", act, absent=("InvalidInstanceID.NotFound",), default={}
        )


def _in_regions(
    account: AwsAccount, filters: list[dict[str, Any]], regions: Sequence[str]
) -> list[CloudMachine]:  # fmt: skip
    clients = {region: account.client("ec2", region) for region in regions}  # here: sessions are not for threads

    def look(region: str) -> list[CloudMachine]:
        pages = clients[region].get_paginator("describe_instances").paginate(Filters=filters)
        found = account.call(f"listing machines in {region}", lambda: list(pages))
        return [
            _machine(region, instance)
            for page in found
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        machines = [one for listed in pool.map(look, regions) for one in listed]
    return sorted(machines, key=lambda one: (one.started_at_s, one.instance_id))


def _machine(region: str, instance: Mapping[str, Any]) -> CloudMachine:
    tags = {str(one["Key"]): str(one["Value"]) for one in instance.get("Tags", [])}
    ended = _ENDED.search(str(instance.get("StateTransitionReason", "")))
    state = str(instance["State"]["Name"])
    ended_at = datetime.strptime(ended[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp() if ended else None
    return CloudMachine(
        infra="aws",
        region=region,
        instance_id=str(instance["InstanceId"]),
        instance_type=str(instance["InstanceType"]),
        pricing=Pricing.SPOT if instance.get("InstanceLifecycle") == "spot" else Pricing.ON_DEMAND,
        run_id=tags.get(RUN_LABEL, ""),
        cluster=tags.get(CLUSTER_TAG, ""),
        state=state,
        started_at_s=instance["LaunchTime"].timestamp(),
        ended_at_s=None if state in ("pending", "running") else ended_at,
    )
