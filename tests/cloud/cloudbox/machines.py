"""Turns the pretend AWS's instances into processes: one sshd in namespaces of its own for each running instance.

    python machines.py --endpoint URL --regions us-east-1,us-east-2 --image DIR --logs DIR --changed FILE

A machine lets in whom its user data name, as cloud-init would read them.

Looks when the pretend AWS has touched FILE, and every ten seconds. An instance that leaves the running state dies at
once, with every process on it: its process 1 is killed. So do all of them when this program ends, however it ends, or
when the one that started it does.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
import yaml
from network import BRIDGE

_PR_SET_PDEATHSIG = 1
_LOOK_EVERY_S = 10.0
_MACHINE = Path(__file__).with_name("machine.sh")


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent's thread ends; the parent has one thread only."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Machines:
    """The machines of all regions."""

    def __init__(self, endpoint: str, regions: list[str], image: Path, logs: Path) -> None:
        self._clients = [boto3.client("ec2", region_name=region, endpoint_url=endpoint) for region in regions]
        self._endpoint, self._image, self._logs = endpoint, image, logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def look(self) -> None:
        """Start what is new, kill what is gone."""
        wanted = {one["InstanceId"]: (client, one["PrivateIpAddress"]) for client, one in self._instances()}
        for name in [name for name in self._running if name not in wanted]:
            self._end(name)
        for name, (client, address) in wanted.items():
            if name not in self._running:
                self._running[name] = self._start(name, address, _public_key(client, name))

    def end_all(self) -> None:
        """Kill every machine."""
        for name in list(self._running):
            self._end(name)

    def _instances(self) -> list[tuple[Any, dict[str, Any]]]:
        running = [{"Name": "instance-state-name", "Values": ["running"]}]
        return [
            (client, instance)
            for client in self._clients
            for page in client.get_paginator("describe_instances").paginate(Filters=running)
            for reservation in page["Reservations"]
            for instance in reservation["Instances"]
        ]

    def _start(self, name: str, address: str, key: str) -> subprocess.Popen[bytes]:
        # A machine's own environment has nothing of the laptop's in it but the mark by which tests find what is left.
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        environ |= {key: value for key, value in os.environ.items() if key == "ALPACA_JOBS_TEST_SESSION"}
        command = ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", str(_MACHINE)]
        with (self._logs / f"{name}.log").open("ab") as log:
            machine = subprocess.Popen(
                [*command, str(self._image), address, key, self._endpoint],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, preexec_fn=die_with_parent,
            )  # fmt: skip
        _plug_in(machine.pid, card=f"v{name[-12:]}")
        return machine

    def _end(self, name: str) -> None:
        machine = self._running.pop(name)
        machine.kill()  # --kill-child: process 1 of the machine goes with it, and with that all others
        machine.wait()


def _public_key(client: Any, name: str) -> str:
    """The first key that the user data give to the first account; empty where there are none."""
    told = client.describe_instance_attribute(InstanceId=name, Attribute="userData")["UserData"].get("Value", "")
    users = (yaml.safe_load(base64.b64decode(told)) or {}).get("users", [])
    return next((key.strip() for user in users for key in user.get("ssh_authorized_keys", ())), "")


def _plug_in(pid: int, *, card: str) -> None:
    """Give a machine its network card, once it has left this network; the card goes with the machine."""
    own, give_up_at = os.readlink("/proc/self/ns/net"), time.monotonic() + 10
    while os.readlink(f"/proc/{pid}/ns/net") == own and time.monotonic() < give_up_at:
        time.sleep(0.01)
    add = f"ip link add {card} type veth peer name eth0 netns {pid}"
    for command in (add, f"ip link set {card} master {BRIDGE}", f"ip link set {card} up"):
        subprocess.run(command.split(), check=True)


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description="Instances of the pretend AWS as processes.")
    for name in ("endpoint", "regions"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("image", "logs", "changed"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    given = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    machines = Machines(given.endpoint, given.regions.split(","), given.image, given.logs)
    try:
        while True:
            seen = given.changed.stat().st_mtime_ns
            machines.look()
            look_at = time.monotonic() + _LOOK_EVERY_S
            while time.monotonic() < look_at and given.changed.stat().st_mtime_ns == seen:
                time.sleep(0.1)
    finally:
        machines.end_all()


if __name__ == "__main__":
    main()
