"""The box by itself: an instance is a machine one can reach, terminating it takes it away, sold out is sold out."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from box import CloudBox

pytestmark = [pytest.mark.cloud, pytest.mark.slow, pytest.mark.timeout(600)]


def greeting(address: str) -> bytes:
    """What answers on port 22; nothing where nobody does."""
    try:
        with socket.create_connection((address, 22), timeout=5) as connection:
            return connection.recv(20)
    except OSError:
        return b""


def test_instances_are_machines_that_live_and_die_with_their_record(box: CloudBox) -> None:
    from processes import wait_for

    ec2 = box.client("ec2", "us-east-2")
    subnet = ec2.describe_subnets(Filters=[{"Name": "cidr-block", "Values": ["10.20.1.0/24"]}])["Subnets"][0]
    wanted = {"ImageId": "ami-785db401", "MinCount": 1, "MaxCount": 1, "SubnetId": subnet["SubnetId"]}
    box.refuse_capacity("", "us-east-2")
    with pytest.raises(ClientError, match="InsufficientInstanceCapacity"):
        ec2.run_instances(**wanted)
    box.refuse_capacity("")
    started = ec2.run_instances(**{**wanted, "MinCount": 2, "MaxCount": 2})["Instances"]
    addresses = [one["PrivateIpAddress"] for one in started]
    for address in addresses:  # on one port: each has a network of its own
        wait_for(lambda: greeting(address).startswith(b"SSH-2.0"), "sshd of the machine", timeout_s=60)  # noqa: B023
    first, second = box.machines()
    assert (first.region, {first.address, second.address}) == ("us-east-2", set(addresses))
    box.preempt(first)
    wait_for(lambda: not greeting(first.address), "end of the machine", timeout_s=30)
    assert greeting(second.address)
    assert [one.instance for one in box.machines()] == [second.instance]
    box.preempt(second)
    wait_for(lambda: not box.machines(), "end of the other", timeout_s=30)


def test_the_box_has_a_network_of_its_own(box: CloudBox) -> None:
    host, _, port = box.endpoint.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5):
        pass
    assert {"lo", "box0"} <= {name for _, name in socket.if_nameindex()}
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("8.8.8.8", 53), timeout=5)
