"""The machines of one attempt: who leads, where they are, and how they hear of each other's end. No Ray in here.

Machine 0, the head, claims the attempt, runs its stages and writes its end. The others lend their processors through
Ray and leave with the head. A notice that reaches one of them is passed to the head through the store:

    nodes/000002-1.notice.json    {"reason": "preempted", "window_s": 25.0}, put once by machine 1 of attempt 2
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

import psutil

from checkpoints.errors import AlreadyExists
from checkpoints.store import Store
from cluster.exits import Notice
from cluster.recovery import StopReason

LOOPBACK = "127.0.0.1"
DEFAULT_RAY_PORT = 6479  # not Ray's own 6379 nor SkyPilot's 6380: theirs may be on the machine too
_FOLDER = "nodes/"


@dataclass(frozen=True)
class NodeGroup:
    """The machines of an attempt as one of them sees it.

    Attributes:
        rank: this machine's number; 0 is the head.
        addresses: of all machines, by rank; how they reach each other.
        ray_port: where the head's Ray answers; 0: any free one, for a machine that is alone.
    """

    rank: int = 0
    addresses: tuple[str, ...] = (LOOPBACK,)
    ray_port: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(self.addresses):
            raise ValueError(f"machine {self.rank} is not one of {len(self.addresses)}: {', '.join(self.addresses)}")
        if len(self.addresses) > 1 and not self.ray_port:
            raise ValueError("several machines meet at a port that all of them know: give ray_port")

    @property
    def size(self) -> int:
        """How many machines there are."""
        return len(self.addresses)

    @property
    def is_head(self) -> bool:
        """Whether this machine leads."""
        return self.rank == 0

    @property
    def address(self) -> str:
        """How the others reach this machine."""
        return self.addresses[self.rank]

    @property
    def meeting_point(self) -> str:
        """HOST:PORT of the head's Ray."""
        return f"{self.addresses[0]}:{self.ray_port}"

    @property
    def is_loopback(self) -> bool:
        """Whether nothing of it leaves this machine."""
        return all(is_loopback(address) for address in self.addresses)


def is_loopback(address: str) -> bool:
    """Whether an address means the very machine that uses it."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def interface_of(address: str) -> str | None:
    """The network interface that holds an address, for libraries that want its name; None if it is not found."""
    for name, held in psutil.net_if_addrs().items():
        if any(one.address == address for one in held):
            return name
    return None


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(address: str, port: int, *, timeout_s: float = 3.0) -> bool | None:
    """Whether somebody accepts connections there: True, False (refused: the machine is up, the process gone), or None
    where nothing came back in time.
    """
    try:
        with socket.create_connection((address, port), timeout=timeout_s):
            return True
    except ConnectionError:
        return False
    except OSError:
        return None


def pass_notice(store: Store, attempt: int, rank: int, notice: Notice) -> None:
    """Tell the head of a notice that reached machine `rank`; a second one changes nothing."""
    body = {"reason": notice.reason.value, "window_s": notice.window_s}
    try:
        store.put_once(f"{_FOLDER}{attempt:06d}-{rank}.notice.json", body)
    except AlreadyExists:
        return


def passed_notice(store: Store, attempt: int) -> Notice | None:
    """The notice that reached another machine of the attempt; the first machine's, if several."""
    for key in store.list(f"{_FOLDER}{attempt:06d}-"):
        body = store.get_record_if_whole(key, advice="Going on without this notice.")
        if body is not None:
            return Notice(StopReason(body["reason"]), float(body["window_s"]))
    return None
