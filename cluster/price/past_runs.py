"""Reading the reports of earlier runs in a store: a few small objects of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from checkpoints.errors import CheckpointError
from checkpoints.store import Store
from cluster.errors import ClusterError
from cluster.price.experience import PastRun
from cluster.runs.report import read_report
from cluster.runs.run_view import index_key, list_runs, read_plan

logger = logging.getLogger(__name__)

MAX_RUNS = 20


def read_past_runs(roots: Iterable[Store], *, limit: int = MAX_RUNS) -> tuple[PastRun, ...]:
    """Read the reports in some stores, the newest runs first; a run that this version cannot read is left out.

    A run that lies in several of them, as a copy does, counts once.
    """
    places = {run_id: root for root in roots for run_id in list_runs(root)}
    launched = sorted(
        ((str((root.get_json(index_key(run_id)) or {}).get("launched_at", "")), run_id, root)
         for run_id, root in places.items()),
        key=lambda one: one[:2], reverse=True,
    )  # fmt: skip
    found = []
    for launched_at, run_id, root in launched[:limit]:
        try:
            report = read_report(root.child(run_id))
            plan, _ = read_plan(root, run_id)
        except (ClusterError, CheckpointError) as exc:
            logger.debug("%s in %s cannot be learned from: %s", run_id, root.uri, exc)
            continue
        if report is not None:
            found.append(PastRun(run_id, launched_at, plan, report))
    return tuple(found)
