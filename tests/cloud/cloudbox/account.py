"""What a user of the pretend AWS has: an environment, keys and settings, price lists, and the account's own network."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from secret_places import Secret

# Region -> (its zone's name, the zone's id, the first two numbers of its addresses, factor of its spot prices): in this
# order of price, so that a plan goes through them in this order.
REGIONS = MappingProxyType(
    {
        "us-east-1": ("us-east-1a", "use1-az6", "10.10", 3.0),
        "us-east-2": ("us-east-2a", "use2-az1", "10.20", 4.0),
        "us-west-2": ("us-west-2a", "usw2-az2", "10.30", 5.0),
    }
)
# Name -> (vCPUs, GiB, price per hour on demand, spot price per hour where the factor is 1).
INSTANCE_TYPES = MappingProxyType({"m6i.large": (2.0, 8.0, 0.096, 0.01), "m6i.xlarge": (4.0, 16.0, 0.192, 0.02)})
_AMI = "ami-785db401"  # one that moto knows
SECRETS = MappingProxyType(
    {
        "the account's key": Secret("cloud", "the account's key", "BoxAccount/7f3a91c2d4e5f60718293a4b5c6d7"),
        "the teacher's key": Secret("task", "the teacher's key", "sk-box-0123456789abcdef0123456789abcdef"),
    }
)
"""Values that somebody is given in the box, none of which stands anywhere by accident."""
PROGRAMS = Path(sys.executable).parent


def fill_account(client: Callable[..., Any]) -> None:
    """Make what SkyPilot expects to find in an account where it was used before.

    Args:
        client: makes a boto3 client of (service, region).
    """
    for region in REGIONS:
        _make_network(client("ec2", region), region)
    _make_role(client("iam"))


def write_settings(home: Path, endpoint: str, *, own_controller: bool = False) -> None:
    """Write what the user has in HOME: keys, SkyPilot's settings and price lists.

    Args:
        own_controller: SkyPilot's job controller is a machine of its own, as by default, and not in its API server.
    """
    aws, sky = home / ".aws", home / ".sky"
    key = SECRETS["the account's key"].value
    (aws / "credentials").write_text(f"[default]\naws_access_key_id = box\naws_secret_access_key = {key}\n")
    (aws / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {endpoint}\n")
    config = {
        # A controller on a machine does without the proxy command, and would then go through AWS's Session Manager.
        "aws": {
            "use_internal_ips": True,
            "vpc_name": "sky-vpc",
            "ssh_proxy_command": "nc %h %p",
            "use_ssm": False,
        },
        "jobs": {"controller": {"consolidation_mode": not own_controller}},
    }
    (sky / "config.yaml").write_text(yaml.safe_dump(config))
    _write_catalog(sky / "catalogs" / "v8")


def list_network_probe(home: Path, endpoint: str) -> None:
    """Let SkyPilot's API server, and controllers on machines of their own, load the patch (network_probe.py)."""
    probe = {"class": "network_probe.NetworkProbe", "parameters": {"url": f"{endpoint}/moto-api/"}}
    for name in ("plugins.yaml", "remote_plugins.yaml"):
        (home / ".sky" / name).write_text(yaml.safe_dump({"plugins": [probe]}))


def user_environment(home: Path) -> dict[str, str]:
    """What a user's shell would hold: nothing of this machine's own keys, caches and homes."""
    kept = {"LANG", "LC_ALL", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "ALPACA_JOBS_TEST_SESSION", "HF_HUB_OFFLINE"}
    return {name: value for name, value in os.environ.items() if name in kept} | {
        "HOME": str(home),
        "PATH": f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "USER": "box",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "PYTHONWARNINGS": "ignore",
        "PIP_NO_BUILD_ISOLATION": "false",  # sic: SkyPilot builds a wheel of itself, and here is nowhere to fetch from
        # As on a small server: few job controllers and not a dozen, but workers that stay, since below 4 GB SkyPilot
        # starts one process for every request.
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "5",
    }


def _make_network(ec2: Any, region: str) -> None:
    """A VPC that SkyPilot finds by its name, with one private subnet."""
    zone, _, numbers, _ = REGIONS[region]
    tags = [{"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": "sky-vpc"}]}]
    vpc = ec2.create_vpc(CidrBlock=f"{numbers}.0.0/16", TagSpecifications=tags)["Vpc"]["VpcId"]
    ec2.create_subnet(VpcId=vpc, CidrBlock=f"{numbers}.1.0/24", AvailabilityZone=zone)


def _make_role(iam: Any) -> None:
    """The role of SkyPilot's machines.

    moto has neither AWS's own policies, which SkyPilot attaches to it, nor the ears for SkyPilot's inline one.
    """
    iam.create_role(RoleName="skypilot-v1", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="skypilot-v1")
    iam.add_role_to_instance_profile(InstanceProfileName="skypilot-v1", RoleName="skypilot-v1")


def _write_catalog(folder: Path) -> None:
    """Price lists in SkyPilot's format, with two kinds of machines; SkyPilot never fetches what is there."""
    header = ["InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Price",
              "SpotPrice", "Region", "AvailabilityZone", "Arch"]  # fmt: skip
    machines = [
        [name, "", "", vcpus, memory, "", on_demand, spot * factor, region, zone_id, "x86_64"]
        for region, (_, zone_id, _, factor) in REGIONS.items()
        for name, (vcpus, memory, on_demand, spot) in INSTANCE_TYPES.items()
    ]
    images = [
        [f"skypilot:custom-{kind}", region, "ubuntu", "22.04", _AMI, "20250910", _AMI]
        for region in REGIONS
        for kind in ("cpu-ubuntu", "gpu-ubuntu", "gpu-ubuntu-cuda13")
    ]
    image_header = ["Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"]
    quota_header = ["AcceleratorName", "InstanceType", "Region", "OnDemandInstanceCode", "SpotInstanceCode"]
    tables = {
        "aws/vms.csv": [header, *machines],
        "aws/images.csv": [image_header, *images],
        "aws/instance_quota_mapping.csv": [quota_header],
        "common/accelerators.csv": [["AcceleratorName", "Clouds"]],
        "common/metadata.csv": [["GPU", "MemoryGB", "Manufacturer"]],
    }
    for name, rows in tables.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
