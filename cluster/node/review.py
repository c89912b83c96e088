"""Stopping for a person's look at the rows (`data.review`), and the data card that is looked at.

    reports/data-card.html     put when the rows are all there, whether or not anybody asked to review them
    control/review.json        put once by `alpaca-jobs resume`: somebody has accepted the rows

Nothing waits for the person: the node leaves, and the run ends with the stop reason `review` until it is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alpaca_jobs.data.rows import Row
from alpaca_jobs.spec import JobSpec
from checkpoints.errors import AlreadyExists
from checkpoints.store import Store
from cluster.errors import AwaitingReview
from cluster.node.attempt_context import AttemptContext
from cluster.node.inputs import frozen_lineage, frozen_seed_tasks

CARD = "reports/data-card.html"
ACCEPTED = "control/review.json"


def keep_card(ctx: AttemptContext, rows: Sequence[Row]) -> None:
    """Put the data card of finished rows into the store, unless it is there."""
    if not rows or ctx.store.exists(CARD):
        return
    from alpaca_jobs.data.card import make_card

    page = make_card(f"Data card: {ctx.run_id}", rows, run_lineage(ctx.store, ctx.job))
    ctx.fence.check()
    ctx.store.put(CARD, page.encode())


def run_lineage(store: Store, job: JobSpec) -> dict[str, str]:
    """Licence and lineage of a run's rows, from the inputs that were frozen at its launch."""
    from alpaca_jobs.data.lineage import lineage_of
    from alpaca_jobs.generation.seeds import load_seed_tasks

    if job.data.from_ is not None:
        return lineage_of(job.data, beside=frozen_lineage(store))
    return lineage_of(job.data, load_seed_tasks(frozen_seed_tasks(store)))


def stop_for_review(ctx: AttemptContext, rows: Sequence[Row]) -> None:
    """Raise AwaitingReview where the job wants its rows looked at and nobody has accepted them yet."""
    if ctx.job.data.review and not ctx.store.exists(ACCEPTED):
        raise AwaitingReview(f"{len(rows):,} rows are written; the data card: {ctx.store.uri}/{CARD}.")


def accept_rows(store: Store, body: dict[str, Any]) -> None:
    """Record that somebody has accepted the rows; accepting twice is accepting once."""
    try:
        store.put_once(ACCEPTED, body)
    except AlreadyExists:
        return
