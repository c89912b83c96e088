"""How runs stand, computed from the store alone; from any laptop that reaches it.

index/<run_id>.json      at the store's root, put at launch, so that listing runs does not list their contents
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import ObjectMissing
from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.errors import RunNotFound
from cluster.event_reading import read_events, read_turns
from cluster.events import Event, seconds_of
from cluster.job_record import read_job_record
from cluster.node.review import CARD
from cluster.other_machines import with_newest_machines
from cluster.plan import LaunchPlan
from cluster.recovery import StopReason
from cluster.runs.attempt_summary import AttemptSummary, summarize_attempts
from cluster.runs.recoveries import WORK, Recovery, recoveries_of
from cluster.runs.report import newest_part
from cluster.runs.run_ids import check_run_id
from cluster.runs.save_stats import SaveUnderWay, save_under_way
from cluster.runs.session import Timing

_INDEX: Final = re.compile(r"index/([a-z0-9-]+)\.json")
_QUIET_S: Final = 10.0  # older news than this is not believed without looking at the lease
SAMPLE_S: Final = Timing().sample_s
_MACHINE_S: Final = 1800.0  # a cloud may take this long to find a machine and set it up, without a word
_DEAD_S: Final = 3600.0  # older news than this is not even looked into


class RunState(StrEnum):
    """How a run stands; values are what `status --json` prints."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"  # for capacity, or for the store
    SILENT = "silent"  # nothing ended it, and nothing shows that it lives
    REVIEW = "review"  # the rows are written and wait for a person's look; `resume` accepts them
    DONE = "done"
    STOPPED = "stopped"  # by its user, budget or deadline: `resume` goes on
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nobody works on the run any more, as far as it said."""
        return self in (RunState.REVIEW, RunState.DONE, RunState.STOPPED, RunState.FAILED)


@dataclass(frozen=True)
class RunView:
    """One run as it stands.

    Attributes:
        words: the newest decision or the end, for people.
        place: of the newest attempt.
        newest_commit: newest state that counts; None before the first.
        rows, target_rows, accept_rate, step, total_steps, loss, tokens_per_second: as its nodes last said.
        mfu, peak_memory_bytes, step_s, data_wait_s: of that step (StepMetrics of alpaca_jobs/training/metrics.py);
            None where its node did not say.
        drops, tokens, teacher_usd: of the generation so far: what was not kept, by reason (None when it is long over);
            tokens as its nodes counted them (TokenCount of alpaca_jobs/generation/statistics.py); dollars.
        teacher_wait: that the teacher answers nobody now: `words`, with since when; `next_try_in_s` from the moment of
            this look, None where its node did not say. None while it answers, or is not asked.
        saving: `step` of the save that is under way, and `for_s`, up to the moment of this look; None without one.
        lag_steps: training steps that a kill now would cost; None before training.
        recoveries: what going on after each lost machine took, split; of a run that is over, its report has them.
        evaluated: step, loss, best_step, best_loss of held-out rows as last measured; None before, or once long over.
        data_card: URI of the page about the run's rows; None until they are all written.
        updated_at: ISO time of the newest event; empty before the first.
    """

    run_id: str
    job_name: str
    store_uri: str
    state: RunState
    words: str
    launched_at: str
    updated_at: str
    place: str
    attempts: tuple[AttemptSummary, ...]
    newest_commit: CommitRef | None
    rows: int | None
    target_rows: int | None
    accept_rate: float | None
    drops: Mapping[str, int] | None
    tokens: Mapping[str, int] | None
    teacher_usd: float | None
    step: int | None
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    lag_steps: int | None
    exit_code: int | None
    data_card: str | None
    teacher_wait: Mapping[str, Any] | None = None
    saving: Mapping[str, Any] | None = None
    recoveries: tuple[Recovery, ...] = ()
    evaluated: Mapping[str, Any] | None = None
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    step_s: float | None = None
    data_wait_s: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {
            "state": self.state.value,
            "attempts": [one.to_json() for one in self.attempts],
            "recoveries": [one.to_json() for one in self.recoveries],
            "newest_commit": self.newest_commit.to_json() if self.newest_commit else None,
        }


def index_key(run_id: str) -> str:
    """Where a run's entry lies, at the store's root."""
    return f"index/{run_id}.json"


def list_runs(root: Store) -> list[str]:
    """Run ids in a store, by name."""
    return sorted(match[1] for key in root.list("index/") if (match := _INDEX.fullmatch(key)))


def read_plan(root: Store, run_id: str) -> tuple[LaunchPlan, str]:
    """Read what was launched, with the machines it goes on with now, and when (ISO time).

    Raises:
        RunNotFound: the store has no such run.
        Damaged: it has one, and its job.json, or a record of other machines, is not as it was put.
    """
    body = with_newest_machines(root.child(check_run_id(run_id)), read_launch(root, run_id))
    return LaunchPlan.from_json(body), str(body["launched_at"])


def read_launch(root: Store, run_id: str) -> Mapping[str, Any]:
    """Read job.json: the plan as it was launched, and when.

    Raises:
        RunNotFound: the store has no such run.
        Damaged: it has one, and its job.json is not as it was put.
    """
    try:
        return read_job_record(root.child(check_run_id(run_id)))
    except ObjectMissing:
        raise RunNotFound(
            f"{root.uri} has no run {run_id}. See what it has with `alpaca-jobs runs --store {root.uri}`, or name "
            "another store."
        ) from None


def view_run(
    root: Store, run_id: str, *, is_alive: bool | None = None, now: float | None = None, sample_s: float = SAMPLE_S
) -> RunView:
    """Look at a run.

    Args:
        root: the store's root.
        is_alive: whether the supervisor that the run had on this machine lives; None: it had none here.
        now: seconds since 1970.
        sample_s: how long to look at a lease to see whether it moves; done only where nothing else tells.

    Raises:
        RunNotFound: the store has no such run.
    """
    plan, launched_at = read_plan(root, run_id)
    store = root.child(run_id)
    log = AttemptLog(store, LAYOUT)
    records = log.records()
    commits = counting_commits(records, list_commits(store, LAYOUT), LAYOUT)
    events = read_events(store, newest_batches=3)
    attempts = summarize_attempts(records, events)
    state = _state(records, events)
    updated_at = max((event.t for event in events), default="")
    is_watched, now_s = True, time.time() if now is None else now
    if not state.is_over and is_alive is not True:
        age_s = now_s - seconds_of(updated_at or launched_at)
        is_watched = is_alive is None
        is_expected = not plan.is_local and age_s <= _MACHINE_S and _awaits_machine(records, events)
        if is_alive is False or (age_s > _QUIET_S and not is_expected):
            lives = age_s <= _DEAD_S and is_lease_moving(log, sample_s=sample_s)
            state = state if lives else RunState.SILENT
    newest = max((record.number for record in records), default=0)
    generation, step = _newest(events, "generation"), _newest(events, "step")
    part = {} if generation else newest_part(store, commits)
    newest_step = max((ref.position for ref in commits if ref.stage == "train"), default=0)
    is_exported = bool(commits) and commits[0].stage == "export"  # its training checkpoints may be deleted
    return RunView(
        run_id=run_id,
        job_name=plan.job.name,
        store_uri=root.uri,
        state=state,
        words=_words(events, state, run_id, newest=newest, is_watched=is_watched),
        launched_at=launched_at,
        updated_at=updated_at,
        place=attempts[-1].place if attempts else "",
        attempts=attempts,
        newest_commit=commits[0] if commits else None,
        rows=generation.get("rows", part.get("rows_total")),
        target_rows=plan.job.data.num_rows if "generate" in plan.job.stages else None,
        accept_rate=generation.get("accept_rate"),
        drops=generation.get("drops"),
        tokens=generation.get("tokens", part.get("tokens_total")),
        teacher_usd=generation.get("usd", part.get("teacher_usd")),
        teacher_wait=_teacher_wait(events, newest, now_s) if state is RunState.RUNNING else None,
        saving=_saving(events, newest, now_s) if state is RunState.RUNNING else None,
        step=step.get("step"),
        total_steps=step.get("total_steps"),
        loss=step.get("loss"),
        tokens_per_second=step.get("tokens_per_second"),
        lag_steps=max(0 if is_exported else int(step["step"]) - newest_step, 0) if "step" in step else None,
        exit_code=_newest(events, "end").get("exit_code") if state.is_over else None,
        data_card=f"{store.uri}/{CARD}" if "generate" in plan.job.stages and store.exists(CARD) else None,
        recoveries=() if state.is_over else _recoveries(store, records),
        evaluated=_newest(events, "eval") or None,
        mfu=step.get("mfu"),
        peak_memory_bytes=step.get("peak_memory_bytes"),
        step_s=step.get("seconds"),
        data_wait_s=step.get("data_wait_s"),
    )


def _teacher_wait(events: Sequence[Event], newest: int, now_s: float) -> Mapping[str, Any] | None:
    """As the newest news of the newest attempt's generation has it."""
    last = next((one for one in reversed(events) if one.kind == "generation" and one.attempt == newest), None)
    if last is None or not last.fields.get("waiting"):
        return None
    at = last.fields.get("next_try_at")
    return {
        "words": str(last.fields["waiting"]),
        "next_try_in_s": None if at is None else max(round(seconds_of(str(at)) - now_s, 1), 0.0),
    }


def _saving(events: Sequence[Event], newest: int, now_s: float) -> Mapping[str, Any] | None:
    """As the newest attempt's node has it."""
    found: SaveUnderWay | None = None
    for event in events:
        if event.attempt == newest:
            found = save_under_way(found, event)
    return None if found is None else {"step": found.step, "for_s": max(round(now_s - found.since_s, 1), 0.0)}


def _recoveries(store: Store, records: Sequence[AttemptRecord]) -> tuple[Recovery, ...]:
    return recoveries_of(records, read_turns(store, until=WORK)) if len(records) > 1 else ()


def _awaits_machine(records: Sequence[AttemptRecord], events: Sequence[Event]) -> bool:
    """Whether the last word is the controller's: its next machine is asked for, or set up, and cannot speak yet."""
    has_ended = not records or records[-1].end is not None
    return has_ended and (not events or events[-1].writer == "supervisor")


def is_lease_moving(
    log: AttemptLog, *, sample_s: float = SAMPLE_S, sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Whether the newest attempt renews its lease right now; takes `sample_s` unless it has ended."""
    newest = log.newest()
    if newest == 0 or "end" in log.present().get(newest, ()):
        return False
    before = log.read_lease(newest)
    sleep(sample_s)
    return log.read_lease(newest) != before or log.newest() > newest


def _state(records: Sequence[AttemptRecord], events: Sequence[Event]) -> RunState:
    """What the supervisor said last; the records, where it said nothing."""
    last = next((one for one in reversed(events) if one.writer == "supervisor" and one.kind != "log"), None)
    if last is not None and last.kind == "end" and last.fields.get("reason") == StopReason.REVIEW.value:
        return RunState.REVIEW
    if last is not None and last.kind == "end":
        match last.fields.get("exit_code"):
            case 0:
                return RunState.DONE
            case 4 | 130:
                return RunState.STOPPED
            case _:
                return RunState.FAILED
    if last is not None and last.kind == "decision" and last.fields.get("action") == "wait":
        return RunState.WAITING
    newest = records[-1] if records else None
    if newest is not None and newest.end is not None and newest.end.get("stop_reason") == "done":
        return RunState.DONE
    if newest is not None and newest.end is not None and newest.end.get("stop_reason") == StopReason.REVIEW.value:
        return RunState.REVIEW
    return RunState.RUNNING if newest is not None and newest.has_base and newest.end is None else RunState.STARTING


def _words(events: Sequence[Event], state: RunState, run_id: str, *, newest: int, is_watched: bool) -> str:
    """What is to be said of a run; `newest` is its newest attempt."""
    if state is RunState.SILENT:
        return f"Nothing shows that it is alive. `alpaca-jobs resume {run_id}` goes on from the newest commit."
    if not is_watched and not state.is_over:
        return (
            "Its node works, but its supervisor on this machine is gone. Unless another machine has resumed it, "
            f"`alpaca-jobs resume {run_id}` watches it again."
        )
    stepped_at = max((event.t for event in events if event.kind in ("step", "attempt")), default="")
    told = [
        event
        for event in events
        if event.kind in ("decision", "end") or (event.kind == "stall" and event.t > stepped_at)
    ]
    # Who decides writes under the first attempt of a launch or resume: that this one began is no news any more.
    if not told or (state is RunState.RUNNING and told[-1].kind == "decision" and told[-1].attempt == newest):
        return ""
    return str(told[-1].fields.get("words", ""))


def _newest(events: Sequence[Event], kind: str) -> Mapping[str, Any]:
    return next((event.fields for event in reversed(events) if event.kind == kind), {})
