"""The cloud in a box: SkyPilot's real API server against a pretend AWS whose instances are processes of this machine.

    with CloudBox(folder) as box:
        subprocess.run(["sky", "jobs", "launch", ...], env=box.environ)

Everything lives below one folder (a HOME of its own included), listens on 127.0.0.0/8, and is gone after `with`.
"""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import boto3
import psutil
import yaml
from image import cloud_image
from machines import die_with_parent

from cluster.cloud.plugin_install import install_plugin, plugin_status, remove_plugin

# Region -> (its zone's name, the zone's id, the first two numbers of its addresses, spot price per hour): in this
# order of price, so that a plan goes through them in this order. An address in 127.0.0.0/8 needs no network of its own.
REGIONS = MappingProxyType(
    {
        "us-east-1": ("us-east-1a", "use1-az6", "127.10", 0.03),
        "us-east-2": ("us-east-2a", "use2-az1", "127.20", 0.04),
        "us-west-2": ("us-west-2a", "usw2-az2", "127.30", 0.05),
    }
)
INSTANCE_TYPE = "m6i.large"
_AMI = "ami-785db401"  # one that moto knows
_HERE = Path(__file__).parent
_MARK = "ALPACA_JOBS_CLOUD_BOX"
_PROGRAMS = Path(sys.executable).parent


class CloudBox:
    """One pretend cloud with SkyPilot before it.

    Args:
        folder: empty, and with a short path.

    Attributes:
        environ: the environment of a user of this cloud, for `sky` and `alpaca-jobs`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self._aws_port, self._sky_port = _free_port(), _free_sky_port()
        self.endpoint = f"http://127.0.0.1:{self._aws_port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self.environ = _user_environment(self.home) | {
            _MARK: str(folder),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self._sky_port),
        }

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, service: str, region: str = "us-east-1") -> Any:
        """A boto3 client of the pretend AWS."""
        return boto3.client(
            service, region_name=region, endpoint_url=self.endpoint,
            aws_access_key_id="box", aws_secret_access_key="box",
        )  # fmt: skip

    def instances(self, *states: str) -> dict[str, str]:
        """Instance id -> region, of those in some states; all that cost money when none is named."""
        found = {}
        filters = [{"Name": "instance-state-name", "Values": list(states or ("pending", "running", "stopping"))}]
        for region in REGIONS:
            for reservation in self.client("ec2", region).describe_instances(Filters=filters)["Reservations"]:
                found |= {instance["InstanceId"]: region for instance in reservation["Instances"]}
        return found

    def preempt(self, instance: str) -> None:
        """Take a machine away without a word."""
        self.client("ec2", self.instances()[instance]).terminate_instances(InstanceIds=[instance])

    def refuse_capacity(self, *regions: str) -> None:
        """From now on, have no machine to give in these regions (and in all others again)."""
        temporary = self.folder / "refuse.tmp"
        temporary.write_text(json.dumps(regions))
        temporary.replace(self.folder / "refuse.json")

    def set_plugin(self, *, installed: bool) -> None:
        """Install or remove our plugin, by the product's own means; the server sees it at its next start.

        Its loader goes to a folder of the box's own: the environment's site-packages is the developer's.
        """
        where = {"SKYPILOT_SERVER_PLUGINS_CONFIG": str(self.home / ".sky" / "plugins.yaml")}
        status = plugin_status(where, site_packages=self.folder / "site")
        install_plugin(status) if installed else remove_plugin(status)

    def start_server(self) -> None:
        """Start SkyPilot's API server and wait until it answers."""
        log = self.folder / "server.log"
        environ = self.environ | {"IS_SKYPILOT_SERVER": "true", "PYTHONPATH": f"{_HERE}:{self.folder / 'site'}"}
        command = [sys.executable, "-m", "sky.server.server", "--host=127.0.0.1", f"--port={self._sky_port}"]
        self._server = self._spawn(command, log, environ)
        url = f"http://127.0.0.1:{self._sky_port}/api/health"
        wait_for(lambda: self._answers(self._server, url, log), "SkyPilot's API server", timeout_s=300)

    def stop(self) -> None:
        """End every process of the box."""
        kill_all(_MARK, str(self.folder))
        for process in self._processes:
            process.wait()

    def _start(self) -> None:
        image = cloud_image()
        for name in ("logs", "home/.aws", "home/.sky/clients"):
            (self.folder / name).mkdir(parents=True)
        self.refuse_capacity()
        log = self.folder / "aws.log"
        program = [sys.executable, str(_HERE / "pretend_aws.py"), "--port", str(self._aws_port)]
        moto = self._spawn([*program, "--refuse", str(self.folder / "refuse.json")], log, self.environ)
        wait_for(lambda: self._answers(moto, f"{self.endpoint}/moto-api/", log), "moto", timeout_s=240)
        for region in REGIONS:
            self._make_network(region)
        self._make_role()
        self._write_settings()
        arguments = {
            "endpoint": self.endpoint, "regions": ",".join(REGIONS), "image": image,
            "keys": self.home / ".sky" / "clients", "logs": self.folder / "logs",
        }  # fmt: skip
        options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        self._spawn([sys.executable, str(_HERE / "machines.py"), *options], self.folder / "machines.log", self.environ)
        self.start_server()

    def _make_network(self, region: str) -> None:
        """A VPC that SkyPilot finds by its name, with one private subnet."""
        zone, _, numbers, _ = REGIONS[region]
        ec2 = self.client("ec2", region)
        tags = [{"ResourceType": "vpc", "Tags": [{"Key": "Name", "Value": "sky-vpc"}]}]
        vpc = ec2.create_vpc(CidrBlock=f"{numbers}.0.0/16", TagSpecifications=tags)["Vpc"]["VpcId"]
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"{numbers}.1.0/24", AvailabilityZone=zone)

    def _make_role(self) -> None:
        """The role of SkyPilot's machines, as in an account where SkyPilot has been used before.

        moto has neither AWS's own policies, which SkyPilot attaches to it, nor the ears for SkyPilot's inline one.
        """
        iam = self.client("iam")
        iam.create_role(RoleName="skypilot-v1", AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName="skypilot-v1")
        iam.add_role_to_instance_profile(InstanceProfileName="skypilot-v1", RoleName="skypilot-v1")

    def _write_settings(self) -> None:
        aws, sky = self.home / ".aws", self.home / ".sky"
        (aws / "credentials").write_text("[default]\naws_access_key_id = box\naws_secret_access_key = box\n")
        (aws / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {self.endpoint}\n")
        config = {
            "aws": {"use_internal_ips": True, "vpc_name": "sky-vpc", "ssh_proxy_command": "nc %h %p"},
            "jobs": {"controller": {"consolidation_mode": True}},
        }
        (sky / "config.yaml").write_text(yaml.safe_dump(config))
        probe = {"class": "network_probe.NetworkProbe", "parameters": {"url": f"{self.endpoint}/moto-api/"}}
        (sky / "plugins.yaml").write_text(yaml.safe_dump({"plugins": [probe]}))
        (self.folder / "site").mkdir()
        self.set_plugin(installed=True)
        _write_catalog(sky / "catalogs" / "v8")

    def _spawn(self, command: list[str], log: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with log.open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=dict(environ), cwd=self.folder,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        self._processes.append(process)
        return process

    def _answers(self, process: subprocess.Popen[bytes] | None, url: str, log: Path) -> bool:
        if process is None or process.poll() is not None:
            raise RuntimeError(f"{log.name} ended early:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def wait_for(look: Callable[[], Any], what: str, *, timeout_s: float, every_s: float = 0.5) -> Any:
    """Look until there is something to see; returns it.

    Raises:
        TimeoutError: it did not come.
    """
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if found := look():
            return found
        time.sleep(every_s)
    raise TimeoutError(f"no {what} within {timeout_s:.0f} s")


def kill_all(name: str, value: str) -> None:
    """SIGKILL every process with a variable in its environment, and their descendants, until none is left.

    SkyPilot's executors write their title over their environment; only their parent tells whose they are.
    """
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        marked = [process for process in psutil.process_iter() if _has(process, name, value)]
        left = list({*marked, *(child for process in marked for child in _descendants(process))})
        if not left:
            return
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    raise TimeoutError(f"processes of {value} are left: {left}")


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _has(process: psutil.Process, name: str, value: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _user_environment(home: Path) -> dict[str, str]:
    """What a user's shell would hold: nothing of this machine's own keys, caches and homes."""
    kept = {"LANG", "LC_ALL", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "ALPACA_JOBS_TEST_SESSION", "HF_HUB_OFFLINE"}
    return {name: value for name, value in os.environ.items() if name in kept} | {
        "HOME": str(home),
        "PATH": f"{_PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "USER": "box",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "PYTHONWARNINGS": "ignore",
        "PIP_NO_BUILD_ISOLATION": "false",  # sic: SkyPilot builds a wheel of itself, and here is nowhere to fetch from
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "3",  # as on a small server: one job controller process, not one per 2 GB
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _free_sky_port() -> int:
    """A port for SkyPilot's API server whose request queue's port, which follows from it, is free as well.

    Source: sky/server/requests/queues/mp_queue.py of 0.14.1.
    """
    for port in range(46_600, 46_900):
        queue = 50_000 + (11 + port - 46_580) % 10_000
        if _is_free(port) and _is_free(queue):
            return port
    raise RuntimeError("no free pair of ports for SkyPilot's API server and its queue")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
        return True


def _write_catalog(folder: Path) -> None:
    """Price lists in SkyPilot's format, with one kind of machine; SkyPilot never fetches what is there."""
    header = ["InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "GpuInfo", "Price",
              "SpotPrice", "Region", "AvailabilityZone", "Arch"]  # fmt: skip
    machines = [
        [INSTANCE_TYPE, "", "", 2.0, 8.0, "", 0.096, spot, region, zone_id, "x86_64"]
        for region, (_, zone_id, _, spot) in REGIONS.items()
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
