"""The one report at the end of a run: attempts, lost work, where the time and the money went.

reports/attempt-000003.json      put once, numbered by the newest attempt it covers
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from cluster.event_reading import read_events
from cluster.events import Event, utc_now
from cluster.node.ledger import Asked, count_asked
from cluster.node.pace import Pace, pace_of
from cluster.plan import LaunchPlan
from cluster.recovery import Decision
from cluster.runs.attempt_summary import AttemptSummary, summarize_attempts
from cluster.runs.evaluated import Evaluated, read_evaluated, told_evaluated
from cluster.runs.goodput import Goodput, lost_steps, split_time
from cluster.runs.recoveries import Recovery, recoveries_of
from cluster.runs.save_stats import SaveStats, save_stats
from cluster.runs.spending import teacher_usd

_KEY: Final = re.compile(r"reports/attempt-(\d{6})\.json")


@dataclass(frozen=True)
class RunReport:
    """Everything a run came to.

    Attributes:
        outcome: the stop reason it ended with; `done` if it finished.
        lost_steps: training steps done again after each attempt but the last.
        rows: rows kept; None if the run generated none. accept_rate, drops: of what the teacher wrote, as its nodes
            last said: the share that was kept, and what was not, by reason.
        step: newest committed training step; None if there is none.
        requests, requests_repeated: asked of the teacher; how many of those were asked before (an upper bound).
        compute_usd: for machines; None if any price is unknown. teacher_usd: None if its price is.
        recoveries: what going on after each lost machine took, split.
        pace: how fast it worked, for the estimates of later runs.
        evaluated: losses of held-out rows; None if nothing was evaluated.
        saves: what saving training state took; None if none was saved.
    """

    run_id: str
    outcome: str
    exit_code: int
    words: str
    finished_at: str
    attempts: tuple[AttemptSummary, ...]
    lost_steps: tuple[int, ...]
    goodput: Goodput
    rows: int | None
    step: int | None
    requests: int
    requests_repeated: int
    compute_usd: float | None
    teacher_usd: float | None
    recoveries: tuple[Recovery, ...]
    pace: Pace
    evaluated: Evaluated | None = None
    saves: SaveStats | None = None
    accept_rate: float | None = None
    drops: Mapping[str, int] | None = None

    @property
    def cost_usd(self) -> float | None:
        """Machines and teacher together; None as long as a part is unknown."""
        if self.compute_usd is None or (self.teacher_usd is None and self.requests):
            return None
        return self.compute_usd + (self.teacher_usd or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the store holds them and `--json` prints them."""
        return {
            "run_id": self.run_id, "outcome": self.outcome, "exit_code": self.exit_code, "words": self.words,
            "finished_at": self.finished_at, "attempts": [one.to_json() for one in self.attempts],
            "regions": [one.place for one in self.attempts], "stop_reasons": [one.stop_reason for one in self.attempts],
            "lost_steps": list(self.lost_steps), "lost_steps_max": max(self.lost_steps, default=0),
            "goodput": self.goodput.to_json(), "rows": self.rows, "step": self.step, "requests": self.requests,
            "requests_repeated": self.requests_repeated, "compute_usd": self.compute_usd,
            "teacher_usd": self.teacher_usd, "cost_usd": self.cost_usd,
            "recoveries": [one.to_json() for one in self.recoveries], "pace": self.pace.to_json(),
            "evaluated": self.evaluated.to_json() if self.evaluated else None,
            "saves": self.saves.to_json() if self.saves else None,
            "accept_rate": self.accept_rate, "drops": self.drops,
        }  # fmt: skip


def report_key(attempt: int) -> str:
    """Where the report lies that covers the attempts up to this one."""
    return f"reports/attempt-{attempt:06d}.json"


def put_report(store: Store, plan: LaunchPlan, outcome: Decision, newest: int) -> RunReport:
    """Make the report from what the store holds and put it; one that covers the same attempts already stands."""
    report = make_report(store, plan.run_id, outcome)
    try:
        store.put_once(report_key(newest), report.to_json())
    except AlreadyExists:
        # A resume that got no machine at all: the attempts are the ones of the report before.
        return report
    return report


def read_report(store: Store) -> Mapping[str, Any] | None:
    """The newest report, as JSON; None before the run has ended once, or if it is damaged, which is said."""
    numbers = [int(match[1]) for key in store.list("reports/") if (match := _KEY.fullmatch(key))]
    if not numbers:
        return None
    return store.get_record_if_whole(
        report_key(max(numbers)), advice="Going on without it; the next end writes another."
    )


def make_report(store: Store, run_id: str, outcome: Decision) -> RunReport:
    """Read records, commits, events and ledger of a run, and put the report together."""
    records = AttemptLog(store, LAYOUT).records()
    commits = counting_commits(records, list_commits(store, LAYOUT), LAYOUT)
    return render_report(
        run_id,
        outcome,
        attempts=summarize_attempts(records, events := read_events(store)),
        recoveries=recoveries_of(records, events),
        commits=commits,
        events=events,
        asked=count_asked(store),
        rows=rows_kept(store, commits),
        evaluated=read_evaluated(store, commits) or told_evaluated(events),
        exported_step=_exported_step(store, commits),
    )


def render_report(
    run_id: str,
    outcome: Decision,
    *,
    attempts: tuple[AttemptSummary, ...],
    recoveries: tuple[Recovery, ...] = (),
    commits: list[CommitRef],
    events: list[Event],
    asked: Asked,
    rows: int | None,
    evaluated: Evaluated | None = None,
    exported_step: int | None = None,
) -> RunReport:
    """Put a report together from what was read; `commits` are those that count, newest first.

    `exported_step` stands for the newest training step where the training checkpoints were deleted.
    """
    costs = [one.cost_usd for one in attempts]
    known = [cost for cost in costs if cost is not None]
    written = next((one.fields for one in reversed(events) if one.kind == "generation" and "drops" in one.fields), {})
    return RunReport(
        run_id=run_id,
        outcome=outcome.reason.value if outcome.reason else "",
        exit_code=outcome.exit_code or 0,
        words=outcome.words,
        finished_at=utc_now(),
        attempts=attempts,
        lost_steps=lost_steps(attempts),
        goodput=split_time(attempts, events),
        rows=rows,
        step=next((ref.position for ref in commits if ref.stage == "train"), exported_step),
        requests=asked.sent,
        requests_repeated=asked.repeated,
        compute_usd=sum(known) if len(known) == len(costs) else None,
        teacher_usd=teacher_usd(events),
        recoveries=recoveries,
        pace=pace_of(events),
        evaluated=evaluated,
        saves=save_stats(events),
        accept_rate=written.get("accept_rate"),
        drops=written.get("drops"),
    )


def _exported_step(store: Store, commits: Sequence[CommitRef]) -> int | None:
    newest = next((ref for ref in commits if ref.stage == "export"), None)
    if newest is None or any(ref.stage == "train" for ref in commits):
        return None
    try:
        step = CommitReader.open(store, LAYOUT, newest).manifest.meta.get("step")
    except Damaged:
        return None
    return None if step is None else int(step)


def newest_part(store: Store, commits: list[CommitRef]) -> Mapping[str, Any]:
    """What the newest counting part of generated data says of itself and those before it; empty if there is no part."""
    newest = next((ref for ref in commits if ref.stage == "generate"), None)
    return {} if newest is None else CommitReader.open(store, LAYOUT, newest).manifest.meta


def rows_kept(store: Store, commits: list[CommitRef]) -> int | None:
    """Rows that the newest counting part of generated data brings the run to; None if there is no part."""
    total = newest_part(store, commits).get("rows_total")
    return None if total is None else int(total)
