"""What a run has cost, beside what it was estimated to: machine by machine, from boot to end. Pure.

It is the price of the catalog times time, not the cloud's invoice. Where the cloud's own records of the machines could
be read (cluster/launch/billed.py), they are what counts; else the run's own: a machine's boot, by its claim, and its
last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cluster.events import seconds_of
from cluster.plan import SECONDS_PER_HOUR, LaunchPlan, Placement
from cluster.price.assumptions import Assumptions
from cluster.runs.attempt_summary import AttemptSummary
from cluster.runs.machines import CloudMachine

NOT_THE_INVOICE: Final = (
    "Catalog price x time, not the cloud's invoice: that has taxes, discounts, disks and traffic in it."
)
_MONTH_S: Final = 730.0 * SECONDS_PER_HOUR
_BY_CLOUD, _BY_RUN = "the cloud's record", "the run's own record"


@dataclass(frozen=True)
class ReceiptLine:
    """One thing that was paid for.

    Attributes:
        what: attempt 2, controller, teacher...
        detail: which machine, where.
        seconds: of all its machines together; None for what is not paid by the hour.
        price_per_hour_usd: of one machine; None where nobody says.
        usd: None where a price or an amount is unknown.
        source: whose word the time is.
    """

    what: str
    detail: str
    seconds: float | None
    price_per_hour_usd: float | None
    usd: float | None
    source: str


@dataclass(frozen=True)
class Receipt:
    """What a run came to.

    Attributes:
        estimated_usd: p10, p50, p90 of the estimate it was launched with; None without one.
        unknown: what is missing in the total, in words.
    """

    run_id: str
    lines: tuple[ReceiptLine, ...]
    estimated_usd: Mapping[str, float | None] | None
    unknown: tuple[str, ...]

    @property
    def usd(self) -> float:
        """All lines whose price is known."""
        return sum(line.usd or 0.0 for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run_id": self.run_id, "usd": self.usd, "estimated_usd": self.estimated_usd,
            "lines": [asdict(line) for line in self.lines], "unknown": list(self.unknown), "note": NOT_THE_INVOICE,
        }  # fmt: skip


@dataclass(frozen=True)
class Paid:
    """What was read about a run for its receipt.

    Attributes:
        machines: by the cloud's records; empty where they could not be read.
        controllers: SkyPilot's, with their price an hour; empty where there is none (or none is known).
        controller_words: what there is to say about the controller where `controllers` is empty.
        teacher_usd: None if its price is unknown; asked: whether a teacher was asked at all.
        stored_bytes: that the run's commits take.
    """

    attempts: Sequence[AttemptSummary]
    machines: Sequence[CloudMachine]
    controllers: Sequence[tuple[CloudMachine, float | None]]
    controller_words: str
    teacher_usd: float | None
    asked: bool
    stored_bytes: int
    launched_at: str
    estimate: Mapping[str, Any] | None


def make_receipt(plan: LaunchPlan, paid: Paid, *, now: float) -> Receipt:
    """Put a receipt together; `now` is in seconds since 1970, for machines that still run."""
    lines = list(_machines(plan, paid, now))
    if not plan.is_local:
        lines += _controllers(paid, now)
        lines.append(_storage(paid, now))
    if paid.asked:
        lines.append(ReceiptLine("teacher", "tokens at the job's prices", None, None, paid.teacher_usd, _BY_RUN))
    unknown = tuple(f"{line.what}: {line.detail}" for line in lines if line.usd is None)
    candidates = (paid.estimate or {}).get("candidates") or [{}]
    return Receipt(plan.run_id, tuple(lines), candidates[0].get("cost_usd"), unknown)


def _machines(plan: LaunchPlan, paid: Paid, now: float) -> Iterable[ReceiptLine]:
    """One line an attempt; machines that no attempt had (it never began) after them."""
    left = list(paid.machines)
    for attempt in paid.attempts:
        own = [one for one in left if _belongs(one, attempt)]
        left = [one for one in left if one not in own]
        yield _by_cloud(plan, f"attempt {attempt.number}", own, now) if own else _by_run(plan, attempt)
    if left:
        yield _by_cloud(plan, "machines before an attempt began", left, now)


def _belongs(machine: CloudMachine, attempt: AttemptSummary) -> bool:
    """Whether the attempt ran on the machine: in its region, and the two overlap in time.

    `started_at` is when the launch was asked for, so an earlier machine of the region ended before it.
    """
    if attempt.place != f"{machine.infra}/{machine.region}" or not attempt.started_at:
        return False
    began, ended = seconds_of(attempt.started_at), seconds_of(attempt.ended_at) if attempt.ended_at else None
    is_before = machine.ended_at_s is not None and machine.ended_at_s <= began
    return not is_before and (ended is None or machine.started_at_s < ended)


def _by_cloud(plan: LaunchPlan, what: str, machines: Sequence[CloudMachine], now: float) -> ReceiptLine:
    priced = [(one.seconds(now), _price(plan, one)) for one in machines]
    usd = sum(seconds * price / SECONDS_PER_HOUR for seconds, price in priced if price is not None)
    first = machines[0]
    many = f"{len(machines)} x " if len(machines) > 1 else ""
    names = ", ".join(one.instance_id for one in machines)
    detail = f"{many}{first.instance_type} ({first.pricing.value}) in {first.infra}/{first.region}: {names}"
    is_known = all(price is not None for _, price in priced)
    return ReceiptLine(what, detail, sum(s for s, _ in priced), priced[0][1], usd if is_known else None, _BY_CLOUD)


def _by_run(plan: LaunchPlan, attempt: AttemptSummary) -> ReceiptLine:
    place = next((one for one in _places(plan) if one.name == attempt.place), None)
    what, price = f"attempt {attempt.number}", None if place is None else place.price_per_hour_usd
    machine = f"{place.instance_type} ({attempt.pricing})" if place else "an unknown machine"
    detail = f"{machine} in {attempt.place or 'an unknown place'}"
    return ReceiptLine(
        what, detail, attempt.billed_s * (place.num_nodes if place else 1), price, attempt.cost_usd, _BY_RUN
    )


def _price(plan: LaunchPlan, machine: CloudMachine) -> float | None:
    fits = (one for one in _places(plan) if _is_of(one, machine))
    return next((one.price_per_hour_usd for one in fits), None)


def _places(plan: LaunchPlan) -> list[Placement]:
    """Where any part of the run may go."""
    return [place for part in plan.parts for place in part.candidates]


def _is_of(place: Placement, machine: CloudMachine) -> bool:
    kind = (place.infra, place.region, place.instance_type, place.pricing)
    return kind == (machine.infra, machine.region, machine.instance_type, machine.pricing)


def _controllers(paid: Paid, now: float) -> list[ReceiptLine]:
    """The share of the run's own time; a controller serves other runs, too, and this is an upper bound."""
    if not paid.controllers:
        return [ReceiptLine("controller", paid.controller_words, None, None, 0.0, _BY_RUN)]
    began = seconds_of(paid.launched_at)
    ends = [seconds_of(one.ended_at) for one in paid.attempts if one.ended_at]
    is_over = bool(paid.attempts) and len(ends) == len(paid.attempts)
    ended = max(ends) if is_over else now
    lines = []
    for machine, price in paid.controllers:
        until = min(ended, now if machine.ended_at_s is None else machine.ended_at_s)
        seconds = max(until - max(began, machine.started_at_s), 0.0)
        usd = None if price is None else price * seconds / SECONDS_PER_HOUR
        detail = f"{machine.instance_type} in {machine.infra}/{machine.region}, while the run lasted"
        lines.append(ReceiptLine("controller", detail, seconds, price, usd, _BY_CLOUD))
    return lines


def _storage(paid: Paid, now: float) -> ReceiptLine:
    """What lies in the store now, since the launch: an upper bound, because it grew."""
    gb, assumed = paid.stored_bytes / 1e9, Assumptions()
    usd = gb * assumed.storage_usd_per_gb_month * max(now - seconds_of(paid.launched_at), 0.0) / _MONTH_S
    monthly = gb * assumed.storage_usd_per_gb_month
    detail = f"{gb:.3g} GB since the launch; {monthly:.2f} USD a month from now on"
    return ReceiptLine("store", detail, None, None, usd, _BY_RUN)
