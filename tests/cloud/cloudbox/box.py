"""The cloud in a box: SkyPilot's real API server against a pretend AWS whose instances are processes of this machine.

    with CloudBox(folder) as box:
        subprocess.run(["sky", "jobs", "launch", ...], env=box.environ)

Everything lives below one folder (a HOME of its own included), listens in a network of its own, and is gone afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import boto3
from account import PROGRAMS, REGIONS, fill_account, list_network_probe, user_environment, write_settings
from image import cloud_image
from machines import die_with_parent
from network import GATEWAY, METADATA
from processes import free_port, free_sky_port, kill_all, replace_json, wait_for

from cluster.cloud.plugin_install import install_plugin, plugin_status, remove_plugin
from cluster.cloud.sky_environments import SkyEnvironment

COSTLY = ("pending", "running", "stopping")
_HERE = Path(__file__).parent
_MARK = "ALPACA_JOBS_CLOUD_BOX"
_SERVER_MARK = "ALPACA_JOBS_CLOUD_BOX_SERVER"


@dataclass(frozen=True)
class Machine:
    """One instance: its id, where it is, its private address, the cluster it belongs to, and all that EC2 says."""

    instance: str
    region: str
    address: str
    cluster: str
    said: Mapping[str, Any]


class CloudBox:
    """One pretend cloud with SkyPilot before it.

    Args:
        folder: empty, and with a short path.

    Attributes:
        environ: the environment of a user of this cloud, for `sky` and `alpaca-jobs`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self._aws_port, self._sky_port = free_port(), free_sky_port()
        self.endpoint = f"http://{GATEWAY}:{self._aws_port}"
        self._refused: dict[str, list[str]] = {}
        self._notices: dict[str, str] = {}
        self._lock = threading.Lock()  # scenarios run side by side
        self._clients: dict[tuple[str, str], Any] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._serving: tuple[bool, bool] | None = None
        self.environ = user_environment(self.home) | {
            _MARK: str(folder),
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(self._sky_port),
            "TMPDIR": str(folder / "tmp"),  # SkyPilot leaves files there
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
        """A boto3 client of the pretend AWS; making one takes longer than most requests, so each is made once."""
        with self._lock:
            if (service, region) not in self._clients:
                self._clients[service, region] = boto3.client(
                    service, region_name=region, endpoint_url=self.endpoint,
                    aws_access_key_id="box", aws_secret_access_key="box",
                )  # fmt: skip
            return self._clients[service, region]

    def machines(self, cluster: str = "", *, states: Sequence[str] = COSTLY) -> list[Machine]:
        """Machines in some states, of the clusters whose name begins so (a run's begin with its id)."""
        filters = [{"Name": "instance-state-name", "Values": list(states)}]
        return [
            Machine(one["InstanceId"], region, one["PrivateIpAddress"], tags.get("skypilot-cluster-name", ""), one)
            for region in REGIONS
            for reservation in self.client("ec2", region).describe_instances(Filters=filters)["Reservations"]
            for one in reservation["Instances"]
            if (tags := {tag["Key"]: tag["Value"] for tag in one.get("Tags", ())}) is not None
            and tags.get("skypilot-cluster-name", "").startswith(cluster)
        ]

    def preempt(self, machine: Machine) -> None:
        """Take a machine away without a word."""
        self.client("ec2", machine.region).terminate_instances(InstanceIds=[machine.instance])

    def announce(self, machine: Machine, *, window_s: float) -> None:
        """Tell a machine, as its metadata service would, that it will be taken away; the caller takes it."""
        at = datetime.now(UTC) + timedelta(seconds=window_s)
        notice = json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})
        with self._lock:
            self._notices[machine.address] = notice
            replace_json(self.folder / "notices.json", self._notices)

    def refuse_capacity(self, cluster: str, *regions: str) -> None:
        """From now on, have no machine in these regions (and in all others again) for clusters named so; "" is all."""
        with self._lock:
            self._refused = {
                region: [*(name for name in self._refused.get(region, ()) if name != cluster),
                         *([cluster] if region in regions else [])]
                for region in REGIONS
            }  # fmt: skip
            replace_json(self.folder / "refuse.json", self._refused)

    def serve(self, *, plugin: bool = True, own_controller: bool = False) -> None:
        """Have SkyPilot's API server as wanted: what is there if it is so, else started anew.

        Args:
            plugin: with ours. own_controller: with its job controller on a machine of its own, and not inside it.
        """
        if self._serving != (plugin, own_controller):
            self.kill_server()
            write_settings(self.home, self.endpoint, own_controller=own_controller)
            self._set_plugin(installed=plugin)
            self._start_server()
            self._serving = plugin, own_controller

    def _set_plugin(self, *, installed: bool) -> None:
        """Install or remove our plugin, by the product's own means; the server sees it at its next start.

        Its loader goes to a folder of the box's own: the environment's site-packages is the developer's.
        """
        sky = self.home / ".sky"
        where = {
            "SKYPILOT_SERVER_PLUGINS_CONFIG": str(sky / "plugins.yaml"),
            "SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG": str(sky / "remote_plugins.yaml"),
            "ALPACA_JOBS_HOME": str(self.home / ".alpaca-jobs"),
        }
        here = SkyEnvironment(self.folder / "site", "the box", has_package=True)
        status = plugin_status(where, environments=[here])
        install_plugin(status) if installed else remove_plugin(status)

    def start_teacher(self, *, latency_s: float) -> str:
        """Start the demo teacher as a server in the box, slow as given; returns its address."""
        ready = self.folder / "teacher.url"
        program = [sys.executable, "-m", "alpaca_jobs.generation.offline_teacher", "--host", GATEWAY]
        program += ["--latency", str(latency_s), "--ready-file", str(ready)]
        self._spawn(program, self.folder / "teacher.log", self.environ)
        wait_for(ready.exists, "the teacher", timeout_s=120, every_s=0.5)
        return ready.read_text()

    def _start_server(self) -> None:
        """Start SkyPilot's API server and wait until it answers."""
        log = self.folder / "server.log"
        environ = self.environ | {"IS_SKYPILOT_SERVER": "true", "PYTHONPATH": f"{_HERE}:{self.folder / 'site'}"}
        environ |= {_SERVER_MARK: str(self.folder)}
        command = [sys.executable, "-m", "sky.server.server", "--host=127.0.0.1", f"--port={self._sky_port}"]
        self._server = self._spawn(command, log, environ)
        url = f"http://127.0.0.1:{self._sky_port}/api/health"
        wait_for(lambda: self._answers(self._server, url, log), "SkyPilot's API server", timeout_s=300, every_s=0.5)

    def kill_server(self) -> None:
        """Kill the API server, its executors and its job controllers, as if the computer they run on had died."""
        kill_all(_SERVER_MARK, str(self.folder))
        self._serving = None

    def stop(self) -> None:
        """End every process of the box."""
        kill_all(_MARK, str(self.folder))
        for process in self._processes:
            process.wait()

    def _start(self) -> None:
        image = cloud_image()
        for name in ("logs", "tmp", "home/.aws", "home/.sky"):
            (self.folder / name).mkdir(parents=True)
        self.refuse_capacity("")
        replace_json(self.folder / "notices.json", self._notices)
        (changed := self.folder / "changed").touch()
        metadata = [sys.executable, str(_HERE / "metadata.py"), "--host", METADATA]
        self._spawn([*metadata, "--notices", str(self.folder / "notices.json")], self.folder / "aws.log", self.environ)
        log = self.folder / "aws.log"
        program = [sys.executable, str(_HERE / "pretend_aws.py"), "--host", GATEWAY, "--port", str(self._aws_port)]
        program += ["--refuse", str(self.folder / "refuse.json"), "--changed", str(changed)]
        moto = self._spawn(program, log, self.environ)
        wait_for(lambda: self._answers(moto, f"{self.endpoint}/moto-api/", log), "moto", timeout_s=240, every_s=0.5)
        fill_account(self.client)
        list_network_probe(self.home, self.endpoint)
        (self.folder / "site").mkdir()
        arguments = {
            "endpoint": self.endpoint, "regions": ",".join(REGIONS), "image": image,
            "logs": self.folder / "logs", "changed": changed,
        }  # fmt: skip
        options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        self._spawn([sys.executable, str(_HERE / "machines.py"), *options], self.folder / "machines.log", self.environ)
        self.serve()
        # As a user does once; else the first launch checks for itself.
        checked = subprocess.run(
            [str(PROGRAMS / "sky"), "check", "aws"], env=self.environ, cwd=self.folder, capture_output=True, text=True
        )
        if checked.returncode or "AWS: enabled" not in checked.stdout:
            raise RuntimeError(f"sky check aws:\n{checked.stdout}{checked.stderr}")

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
