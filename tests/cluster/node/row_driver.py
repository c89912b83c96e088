"""One attempt of a run that only generates rows, with its actors in this process; no Ray, so that it starts fast.

    python tests/cluster/node/row_driver.py STORE RUN ATTEMPT SCRATCH     # exit 0: done; 4: budget used up

The very stage, ledger and commits of a node; killed by the tests at any moment, and started again as the next attempt.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alpaca_jobs.errors import BudgetExceeded
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.events import EventWriter
from cluster.node.actor_runtime import InProcessActors
from cluster.node.attempt_context import AttemptContext, Interruption
from cluster.node.generate_stage import GeneratedRows, GenerateStage, read_generated
from cluster.phase import PhaseMarker


def generate_rows(store_uri: str, run_id: str, attempt: int, scratch: Path) -> GeneratedRows:
    """Run one attempt to its end; `job.json` holds the job."""
    scratch.mkdir(parents=True, exist_ok=True)
    store = Store.open(store_uri).child(run_id)
    log = AttemptLog(store, LAYOUT)
    log.claim(attempt, {})
    parts = counting_commits(log.records(), list_commits(store, LAYOUT), LAYOUT)
    job = JobSpec.model_validate(store.get_json("job.json")["job"])  # type: ignore[index]
    events = EventWriter(store, attempt=attempt, writer="node")
    ctx = AttemptContext(
        run_id=run_id, attempt=attempt, job=job, world_size=1, layout=LAYOUT, store=store, store_uri=store_uri,
        log=log, fence=Fence(log, attempt), events=events, marker=PhaseMarker(scratch), interruption=Interruption(),
        scratch=scratch, counting=tuple(parts),
    )  # fmt: skip
    state = read_generated(ctx, parts) if parts else GeneratedRows()
    log.put_base(attempt, parts[0] if parts else None)
    try:
        with InProcessActors() as actors:
            if not state.complete:
                GenerateStage(ctx, actors, state).run()
    finally:
        events.close()
    return state


if __name__ == "__main__":
    try:
        generate_rows(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    except BudgetExceeded as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(4)
