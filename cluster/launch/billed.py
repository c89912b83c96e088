"""Reading what a receipt is made of: the run's store, and the cloud's own records of its machines.

Clouds forget machines that are gone, so what was read is kept in the run's store (cluster/cloud/machine_records.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import NotCommitted
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from cluster.cloud.aws_account import AwsAccount
from cluster.cloud.aws_machines import controllers, machines_of_run
from cluster.cloud.machine_records import aws_regions, keep_gone, kept_machines
from cluster.errors import CloudError
from cluster.event_reading import read_events
from cluster.job_record import read_estimate
from cluster.launch.receipt import Paid
from cluster.node.ledger import count_asked
from cluster.other_machines import with_all_places
from cluster.plan import LaunchPlan, Pricing
from cluster.price.controller import is_consolidated
from cluster.price.offers import load_offers
from cluster.runs.attempt_summary import summarize_attempts
from cluster.runs.machines import CloudMachine
from cluster.runs.run_view import read_launch
from cluster.runs.spending import teacher_usd


def read_paid(root: Store, run_id: str, *, account: AwsAccount | None = None) -> tuple[LaunchPlan, Paid, str]:
    """Read everything about a run that its receipt needs.

    Returns:
        The plan with every place the run may have been in, what was paid, and why the cloud's records are missing (""
        where they are there).

    Raises:
        RunNotFound, CheckpointError: the run's store does not say.
    """
    launched, store = read_launch(root, run_id), root.child(run_id)
    plan = with_all_places(store, launched)
    events, asked = read_events(store), count_asked(store)
    machines, watching, why = _of_cloud(plan, store, account or AwsAccount())
    paid = Paid(
        attempts=summarize_attempts(AttemptLog(store, LAYOUT).records(), events),
        machines=machines,
        controllers=watching,
        controller_words=controller_words(),
        teacher_usd=teacher_usd(events),
        asked=bool(asked.sent),
        stored_bytes=stored_bytes(store),
        launched_at=str(launched["launched_at"]),
        estimate=read_estimate(store),
    )
    return plan, paid, why


def controller_words(settings: Path | None = None) -> str:
    """What there is to say about SkyPilot's controller where no machine of its own was found."""
    if is_consolidated(settings):
        return "in SkyPilot's API server: no machine of its own"
    return "no machine of its own was found; where there is one, it is not in this receipt"


def stored_bytes(store: Store) -> int:
    """Bytes of all committed objects, by their manifests."""
    total = 0
    for ref in list_commits(store, LAYOUT):
        try:
            manifest = CommitReader.open(store, LAYOUT, ref).manifest
        except NotCommitted:  # retention deletes while we read
            continue
        total += sum(entry.stored_bytes for entry in manifest.objects)
    return total


def _of_cloud(
    plan: LaunchPlan, store: Store, account: AwsAccount
) -> tuple[list[CloudMachine], list[tuple[CloudMachine, float | None]], str]:
    """(the run's machines, controllers with their prices, why they are missing)."""
    if plan.is_local:
        return [], [], ""
    regions, kept = aws_regions(plan), kept_machines(store)
    if not regions:
        return list(kept.values()), [], f"{plan.candidates[0].infra}'s records cannot be read here"
    try:
        found = machines_of_run(account, plan.run_id, regions)
        watching = controllers(account, regions)
    except CloudError as exc:
        return list(kept.values()), [], str(exc)
    keep_gone(store, found)
    machines = {**kept, **{one.instance_id: one for one in found}}
    return sorted(machines.values(), key=lambda one: one.started_at_s), _priced(watching), ""


def _priced(machines: Sequence[CloudMachine]) -> list[tuple[CloudMachine, float | None]]:
    if not machines:
        return []
    prices = {
        (one.region, one.instance_type): one.price_per_hour_usd
        for one in load_offers(["aws"], machines="cpu")
        if one.pricing is Pricing.ON_DEMAND
    }
    return [(one, prices.get((one.region, one.instance_type))) for one in machines]
