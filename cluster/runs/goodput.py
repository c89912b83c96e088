"""Where a run's time went: useful, lost, saving, waiting. Pure; from attempts and their nodes' events.

    first launch |--waiting--|--useful--|-lost-|--waiting--|--useful ... --| end
                  start-up              ^ the commit that the next attempt started from

Waiting is everything that is no work: capacity, start-up, recovery, the time until a dead node was noticed, and a
teacher that answered nobody. Lost is work that was done again. Saving is the time that training stood still for
checkpoints. The four add up to the whole; the time between an end and a resume is no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median

from checkpoints.keys import CommitRef
from cluster.events import Event, seconds_of
from cluster.node.teacher_waits import teacher_waits
from cluster.runs.attempt_summary import AttemptSummary

_WORK = ("generation", "step", "save")


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run, split; `wall_s` is the sum. Of `waiting_s`, `teacher_wait_s` was for the teacher."""

    useful_s: float
    lost_s: float
    saving_s: float
    waiting_s: float
    teacher_wait_s: float = 0.0

    @property
    def wall_s(self) -> float:
        """From the first launch to the end, without the time between an end and a resume."""
        return self.useful_s + self.lost_s + self.saving_s + self.waiting_s

    def to_json(self) -> dict[str, float]:
        """Plain values, rounded to milliseconds."""
        return {name: round(value, 3) for name, value in {**asdict(self), "wall_s": self.wall_s}.items()}


def split_time(attempts: Sequence[AttemptSummary], events: Sequence[Event]) -> Goodput:
    """Split the time from the first attempt's start to the last one's end."""
    times = [seconds_of(t) for one in attempts for t in (one.started_at, one.ended_at) if t]
    wall_s = max(times) - min(times) - _stopped_s(events, max(times)) if times else 0.0
    waits = teacher_waits(events)
    useful = lost = saving = waited = 0.0
    for place, attempt in enumerate(attempts):
        successor = next((one for one in attempts[place + 1 :] if one.has_base), None)
        work = _work_of(attempt, events)
        if work is None:
            continue
        kept_until = work.end if successor is None else work.commit_time(successor.base)
        own = [wait for wait in waits if wait.attempt == attempt.number]
        kept_wait = sum(wait.within(work.begin, kept_until) for wait in own)
        lost_wait = sum(wait.within(kept_until, work.end) for wait in own)
        stalls = sum(stall for at, stall in work.stalls if at <= kept_until)
        stalls = min(stalls, max(kept_until - work.begin - kept_wait, 0.0))
        useful += kept_until - work.begin - kept_wait - stalls
        saving += stalls
        lost += work.end - kept_until - lost_wait
        waited += kept_wait + lost_wait
    waiting = max(wall_s - useful - lost - saving, 0.0)
    return Goodput(useful, lost, saving, waiting, min(waited, waiting))


def _stopped_s(events: Sequence[Event], until: float) -> float:
    """Seconds between the ends of the run and its resumes: nobody waited for anything then."""
    told = [event for event in events if event.writer == "supervisor" and event.kind != "log"]
    return sum(
        max(min(seconds_of(after.t), until) - seconds_of(before.t), 0.0)
        for before, after in pairwise(told)
        if before.kind == "end"
    )


def lost_steps(attempts: Sequence[AttemptSummary]) -> tuple[int, ...]:
    """Training steps done again after each attempt but the last, in order; an attempt whose reach is unknown adds 0."""
    lost = []
    for place, attempt in enumerate(attempts[:-1]):
        successor = next((one for one in attempts[place + 1 :] if one.has_base), None)
        if attempt.reached is None or attempt.reached[0] != "train" or successor is None:
            lost.append(0)
            continue
        base = successor.base
        if base is not None and base.stage not in ("train", "generate"):
            lost.append(0)
            continue
        kept = base.position if base is not None and base.stage == "train" else 0
        lost.append(max(attempt.reached[1] - kept, 0))
    return tuple(lost)


@dataclass(frozen=True)
class _Work:
    """An attempt's work: from its first sign of work to its last, commits with their times, stalls with theirs.

    `rows_until` is its last word about rows: what it did later was training.
    """

    number: int
    begin: float
    rows_until: float
    end: float
    commits: tuple[tuple[str, int, float], ...]
    stalls: tuple[tuple[float, float], ...]

    def commit_time(self, base: CommitRef | None) -> float:
        """When the state was committed that the successor started from; the beginning if that was older work."""
        if base is None or base.attempt != self.number:
            return self.begin
        if base.stage == "generate":
            return self.rows_until
        known = [at for stage, position, at in self.commits if (stage, position) == (base.stage, base.position)]
        # The node may have died before it told of its last commit: then the work up to its last word counts.
        return min(known[0] if known else self.end, self.end)


def _untold_s(attempt: AttemptSummary, own: Sequence[Event], told_until: float) -> float:
    """Seconds of the steps that a node marked on its disk, and died before it told of: as long as its others took, and
    no longer than it lived.
    """
    steps = [event for event in own if event.kind == "step"]
    if not steps or attempt.reached is None or attempt.reached[0] != "train":
        return 0.0
    untold = attempt.reached[1] - max(int(event.fields["step"]) for event in steps)
    each = median(float(event.fields.get("seconds", 0.0)) for event in steps)
    lived = seconds_of(attempt.ended_at) - told_until if attempt.ended_at else 0.0
    return max(min(untold * each, lived), 0.0)


def _work_of(attempt: AttemptSummary, events: Sequence[Event]) -> _Work | None:
    own = [event for event in events if event.attempt == attempt.number and event.kind in _WORK]
    if not own:
        return None
    times = [seconds_of(event.t) for event in own]
    end = max(times) + _untold_s(attempt, own, max(times))
    if attempt.stop_reason == "done" and attempt.ended_at:
        end = max(end, seconds_of(attempt.ended_at))  # the export is work too
    saves = [event for event in own if event.kind == "save" and event.fields.get("committed", True)]
    return _Work(
        number=attempt.number,
        begin=min(times),
        rows_until=max((seconds_of(event.t) for event in own if event.kind == "generation"), default=end),
        end=end,
        commits=tuple(("train", int(event.fields["position"]), seconds_of(event.t)) for event in saves),
        stalls=tuple((seconds_of(event.t), float(event.fields.get("stall_s", 0.0))) for event in saves),
    )
