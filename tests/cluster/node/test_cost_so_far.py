"""What a run has cost when it exports: every attempt at its price, also one that never said when it ended."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoints.lineage import AttemptRecord
from cluster.events import seconds_of
from cluster.node.cost_so_far import machines_usd
from cluster.plan import Placement, Pricing


def _record(number: int, start: str, end: str | None, *, price: float | None = 2.0, boot: str = "") -> AttemptRecord:
    place = Placement(
        infra="aws", region="us-east-1", zone=None, pricing=Pricing.SPOT, instance_type="m5.large",
        price_per_hour_usd=price, num_nodes=2,
    )  # fmt: skip
    claim: dict[str, Any] = {"placement": place.to_json(), "started_at": f"2026-11-21T{start}:00.000Z"}
    if boot:
        claim["machine_started_at"] = f"2026-11-21T{boot}:00.000Z"
    ended = None if end is None else {"ended_at": f"2026-11-21T{end}:00.000Z"}
    return AttemptRecord(number, claim, True, None, ended)


NOW = seconds_of("2026-11-21T14:00:00.000Z")


def test_attempts_are_counted_from_their_boot_to_their_end_or_now() -> None:
    records = [_record(1, "10:00", "11:00"), _record(2, "12:00", None, boot="11:30")]
    assert machines_usd(records, now_s=NOW) == pytest.approx(2 * 2.0 * (1 + 2.5))


def test_an_attempt_without_an_end_is_counted_until_the_next_began() -> None:
    records = [_record(2, "11:00", None), _record(1, "10:00", None)]
    assert machines_usd(records, now_s=NOW) == pytest.approx(2 * 2.0 * 4)


def test_an_unknown_price_is_no_price_of_zero() -> None:
    assert machines_usd([_record(1, "10:00", "11:00"), _record(2, "11:00", None, price=None)], now_s=NOW) is None
    assert machines_usd([AttemptRecord(1, {"started_at": "x"}, True, None, None)], now_s=NOW) is None
