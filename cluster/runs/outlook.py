"""What is left of a run: the courses of its estimate, corrected by what the run itself has shown.

    left of training    steps left x seconds a step, as its own steps were timed
    left of the rows    rows left / rows a second, as its own teacher was timed
    start               from a machine's boot to its first work, the median over the run's attempts
    away                from a loss to the next machine's boot, the median over the run's recoveries
    losses              the estimate's hazard, moved by the run's own machines

Where nothing was measured yet, the estimate that was made at launch (estimate.json in the store) says it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from cluster.course import AWAY_PRIOR_S, SAVE_INTERVAL_PRIOR_S, Course
from cluster.event_reading import read_events
from cluster.events import Event, seconds_of
from cluster.hazard import PRIOR_PER_NODE_HOUR, own_losses, spot_hazard
from cluster.job_record import read_estimate
from cluster.node.pace import pace_of
from cluster.on_demand import Outlook
from cluster.plan import LaunchPlan
from cluster.recovery import StopReason
from cluster.runs.recoveries import WORK, recoveries_of
from cluster.runs.report import rows_kept

_FEWEST_STEPS = 3  # that make a pace


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Attributes:
        num_nodes: machines that work together.
        records: attempts on machines of the kind that is looked for. commits: those that count, newest first.
        rows, target_rows: rows kept, and wanted; target_rows is None for a run that writes none, or has them all.
        trains, trains_elsewhere: whether training is left to do, and whether that is for other machines.
    """

    num_nodes: int
    records: Sequence[AttemptRecord]
    commits: Sequence[CommitRef]
    events: Sequence[Event]
    rows: int = 0
    target_rows: int | None = None
    trains: bool = True
    trains_elsewhere: bool = False


def courses_of(estimate: Mapping[str, Any] | None) -> dict[str, Course]:
    """The courses of an estimate's first place by stage (rows, training); what is not of this version is left out."""
    names = {field.name for field in fields(Course)}
    stages = _first_place(estimate).get("stages") or ()
    told = {str(one.get("name")): one.get("course") or {} for one in stages}
    return {stage: Course(**body) for stage, body in told.items() if set(body) == names}


def read_outlook(store: Store, plan: LaunchPlan, *, num_nodes: int, until: str | None) -> Outlook | None:
    """What is left of a run, by its store; None where neither the run nor its estimate says how long that takes.

    Args:
        num_nodes: machines that work together, of the part that is to go on.
        until: the stage after which that part is over; None for the run's last part.
    """
    records = AttemptLog(store, LAYOUT).records()
    commits = counting_commits(records, list_commits(store, LAYOUT), LAYOUT)
    writes = "generate" in plan.job.stages and not has_all_rows(store, commits)
    trains = plan.parts[-1].until is None
    standing = Standing(
        num_nodes=num_nodes,
        records=records_of_part(records),
        commits=commits,
        events=read_events(store),
        rows=(rows_kept(store, commits) or 0) if writes else 0,
        target_rows=plan.job.data.num_rows if writes else None,
        trains=trains,
        trains_elsewhere=trains and until == "generate",
    )
    return outlook_of(read_estimate(store), standing)


def records_of_part(records: Sequence[AttemptRecord]) -> list[AttemptRecord]:
    """The attempts after the last that ended a part of the run: what earlier parts met was on other machines."""
    ended = [one.number for one in records if (one.end or {}).get("stop_reason") == StopReason.PART_DONE.value]
    return [one for one in records if one.number > max(ended, default=0)]


def has_all_rows(store: Store, commits: Sequence[CommitRef]) -> bool:
    """Whether the rows of a run are all there; `commits` are those that count, newest first."""
    newest = next((ref for ref in commits if ref.stage == "generate"), None)
    if any(ref.stage != "generate" for ref in commits):
        return True
    return newest is not None and bool(CommitReader.open(store, LAYOUT, newest).manifest.meta["complete"])


def outlook_of(estimate: Mapping[str, Any] | None, standing: Standing) -> Outlook | None:
    """What is left; None where neither the run nor its estimate says how long that takes."""
    courses = courses_of(estimate)
    rows = _rows_left(courses.get("rows"), standing)
    training = _training_left(courses.get("training"), standing) if standing.trains else _NOTHING
    if rows is None or training is None:
        return None
    here, then_s = [rows, training], 0.0
    if standing.trains_elsewhere:
        here = [rows]
        course = courses.get("training")
        then_s = training.work_s + (0.0 if course is None else course.away_s + course.start_s + course.finish_s)
    course = _course(here, courses, standing)
    if course is None:
        return None
    share = rows.share_left if standing.target_rows else 0.0
    teacher_usd = share * float((_first_place(estimate).get("parts_usd") or {}).get("teacher") or 0.0)
    measured = [one.is_measured for one in here if one.work_s > 0]
    source = "as this run was timed" if measured and all(measured) else "as estimated"
    return Outlook(course, then_s, teacher_usd, source)


@dataclass(frozen=True)
class _Left:
    """What is left of one stage, in seconds of work between saves of `every_s`."""

    work_s: float
    every_s: float
    is_measured: bool
    share_left: float = 1.0


_NOTHING: Final = _Left(0.0, SAVE_INTERVAL_PRIOR_S, True, 0.0)


def _rows_left(course: Course | None, standing: Standing) -> _Left | None:
    target = standing.target_rows
    if not target or standing.rows >= target:
        return _NOTHING
    share = 1.0 - standing.rows / target
    every_s = SAVE_INTERVAL_PRIOR_S if course is None else course.save_interval_s
    pace = pace_of(standing.events).generation
    if pace is not None:
        return _Left((target - standing.rows) * pace.seconds / pace.rows, every_s, True, share)
    return None if course is None else _Left(course.work_s * share, every_s, False, share)


def _training_left(course: Course | None, standing: Standing) -> _Left | None:
    if any(ref.stage == "export" for ref in standing.commits):
        return _NOTHING
    saved = sorted({ref.position for ref in standing.commits if ref.stage == "train"})
    done = saved[-1] if saved else 0
    totals = [one.fields.get("total_steps") for one in standing.events if one.kind == "step"]
    total = next((int(one) for one in reversed(totals) if one), None)
    every_s = SAVE_INTERVAL_PRIOR_S if course is None else course.save_interval_s
    pace = pace_of(standing.events).training
    if total is not None and pace is not None and pace.steps >= _FEWEST_STEPS:
        step_s = pace.seconds / pace.steps
        gaps = [after - before for before, after in pairwise(saved)]
        return _Left(max(total - done, 0) * step_s, max(gaps) * step_s if gaps else every_s, True)
    if course is None:
        return None
    return _Left(course.work_s * (1.0 - min(done / total, 1.0) if total else 1.0), every_s, False)


def _course(here: Sequence[_Left], courses: Mapping[str, Course], standing: Standing) -> Course | None:
    """What is left here as one course; None where nobody knows how long a start takes."""
    prior = courses.get("rows" if standing.trains_elsewhere or "training" not in courses else "training")
    start_s = _start_s(standing)
    if start_s is not None:
        first_s = restart_s = start_s
    elif prior is not None:
        first_s, restart_s = prior.restart_s if standing.commits else prior.start_s, prior.restart_s
    else:
        return None
    away = [
        one.notice_s + one.buy_s
        for one in recoveries_of(standing.records, standing.events)
        if one.notice_s is not None and one.buy_s is not None
    ]
    taken, hours = own_losses(standing.records)
    told = prior.losses_per_hour / standing.num_nodes if prior else 0.0  # 0 where it was made for on demand
    hazard = spot_hazard(own_preemptions=taken, own_node_hours=hours, prior=told or PRIOR_PER_NODE_HOUR)
    return Course(
        work_s=sum(one.work_s for one in here),
        work_spread=0.0,
        start_s=first_s,
        restart_s=restart_s,
        away_s=statistics.median(away) if away else prior.away_s if prior else AWAY_PRIOR_S,
        save_interval_s=max(one.every_s for one in here),
        losses_per_hour=hazard.per_node_hour * standing.num_nodes,
        finish_s=prior.finish_s if prior else 0.0,
    )


def _start_s(standing: Standing) -> float | None:
    """From a machine's boot to its first work, as this run's attempts took; None before the first of them worked."""
    took = []
    for record in standing.records:
        claim = record.claim or {}
        began = claim.get("machine_started_at") or claim.get("started_at")
        works = _work_times(standing.events, record.number)
        if began and works:
            took.append(max(min(works) - seconds_of(str(began)), 0.0))
    return statistics.median(took) if took else None


def _work_times(events: Iterable[Event], attempt: int) -> list[float]:
    return [seconds_of(one.t) for one in events if one.attempt == attempt and one.kind in WORK]


def _first_place(estimate: Mapping[str, Any] | None) -> Mapping[str, Any]:
    candidates = (estimate or {}).get("candidates") or [{}]
    first: Mapping[str, Any] = candidates[0]
    return first
