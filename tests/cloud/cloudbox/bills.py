"""What the pretend AWS would charge for: its own records of instances, from start to end. Pure.

EC2 bills an instance from its launch to its end, by the second; both stand in DescribeInstances, `LaunchTime` and in
words in `StateTransitionReason` ("User initiated (2026-11-21 12:00:00 UTC)").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from account import INSTANCE_TYPES, REGIONS

EVER = ("pending", "running", "stopping", "stopped", "shutting-down", "terminated")
"""Every state of an instance that the pretend AWS remembers."""
_BILLED = ("pending", "running", "stopping")
_ENDED = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC\)")


@dataclass(frozen=True)
class Bill:
    """One instance as it is billed; times are seconds since 1970, `ended_s` None while it is billed."""

    instance: str
    region: str
    began_s: float
    ended_s: float | None
    price_per_hour_usd: float

    def usd(self, *, now_s: float) -> float:
        """Instance-seconds times price."""
        return (self._until(now_s) - self.began_s) / 3600 * self.price_per_hour_usd

    def _until(self, now_s: float) -> float:
        return now_s if self.ended_s is None else self.ended_s


def bill_of(region: str, said: Mapping[str, Any]) -> Bill:
    """Read an instance of DescribeInstances.

    Raises:
        ValueError: it is over, and does not say since when.
    """
    ended_s = None
    if said["State"]["Name"] not in _BILLED:
        ended = _ENDED.search(said.get("StateTransitionReason", ""))
        if ended is None:
            raise ValueError(f"{said['InstanceId']} is {said['State']['Name']}, and does not say since when")
        ended_s = datetime.strptime(ended[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    _, _, on_demand, spot = INSTANCE_TYPES[said["InstanceType"]]
    price = spot * REGIONS[region][3] if said.get("InstanceLifecycle") == "spot" else on_demand
    return Bill(said["InstanceId"], region, said["LaunchTime"].timestamp(), ended_s, price)


def billed_beyond_s(bills: Sequence[Bill], wanted: int, *, now_s: float) -> float:
    """Seconds, all together, in which more instances than wanted were billed at once."""
    marks = sorted((at, change) for one in bills for at, change in _changes(one, now_s))
    count, seconds = 0, 0.0
    for (at, change), after in zip(marks, [*marks[1:], marks[-1]] if marks else [], strict=True):
        count += change
        seconds += (after[0] - at) if count > wanted else 0.0
    return seconds


def _changes(bill: Bill, now_s: float) -> Iterable[tuple[float, int]]:
    return (bill.began_s, 1), (bill._until(now_s), -1)
