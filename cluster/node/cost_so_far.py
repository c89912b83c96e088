"""What a run has cost when its model is exported, in words for the model's card; the whole bill is `receipt`'s."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.reader import CommitReader, list_commits
from cluster.events import seconds_of, utc_now
from cluster.node.attempt_context import AttemptContext
from cluster.plan import Placement


def cost_words(ctx: AttemptContext) -> str:
    """Machines at the plan's prices and the teacher, up to now."""
    machines = machines_usd(ctx.log.records(), now_s=seconds_of(utc_now()))
    parts = ["machines: a price is unknown" if machines is None else f"machines ${machines:,.2f}"]
    commits = counting_commits(ctx.log.records(), list_commits(ctx.store, ctx.layout), ctx.layout)
    part = next((ref for ref in commits if ref.stage == "generate"), None)
    if part is not None and (teacher := teacher_usd(ctx, part)) is not None:
        parts.append(f"teacher ${teacher:,.2f}")
    count = len(ctx.log.records())
    return f"{', '.join(parts)}; over {count} attempt{'s' if count != 1 else ''}, up to this export"


def machines_usd(records: Sequence[AttemptRecord], *, now_s: float) -> float | None:
    """Dollars for the machines of all attempts; None if a price is unknown. Pure.

    An attempt that could not say when it ended is counted until the next one began.
    """
    total = 0.0
    ordered = sorted((record for record in records if record.claim), key=lambda record: record.number)
    for record, following in pairwise([*ordered, None]):
        assert record is not None
        claim: Any = record.claim
        if not claim.get("placement") or not _start(claim):
            return None
        begin = seconds_of(_start(claim))
        until = seconds_of(_start(following.claim)) if following and following.claim else now_s
        if (ended := (record.end or {}).get("ended_at")) is not None:
            until = min(until, seconds_of(str(ended)))
        cost = Placement.from_json(claim["placement"]).usd_for(max(until - begin, 0.0))
        if cost is None:
            return None
        total += cost
    return total


def _start(claim: Any) -> str:
    return str(claim.get("machine_started_at") or claim.get("started_at") or "")


def teacher_usd(ctx: AttemptContext, part: CommitRef) -> float | None:
    """Dollars for the teacher, all attempts together, as a part of the rows has it; None if a price is unknown."""
    spent = CommitReader.open(ctx.store, ctx.layout, part).manifest.meta.get("teacher_usd")
    return None if spent is None else float(spent)
