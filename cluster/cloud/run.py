"""A run on a cloud, as those who keep it going see it: its past is read from the store, and what follows is decided.

control/session-000001.json     put once by `launch` and by every `resume`: plan, limits, timing, first attempt

On a cloud nobody's memory can be relied on: SkyPilot's controller may be restarted, and does not say why a task ended.
So the attempts' claims and ends are the memory. SkyPilot's side asks before every launch (`decide`), the node itself
after a stop that needs no other machine (`close`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import ObjectMissing
from checkpoints.keys import CommitRef
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.cloud.unsaid_end import NEVER_BEGAN, NOT_BEGUN_S, NOT_READY, alive_until_s, judge
from cluster.control import CancelWatch
from cluster.errors import RunNotFound
from cluster.event_reading import read_events
from cluster.events import EventWriter, iso_time, seconds_of
from cluster.numbered_records import number_of, put_next_record, record_keys
from cluster.on_demand import Outlook
from cluster.plan import LaunchPlan, Placement, PlanPart
from cluster.recovery import Action, Decision, Stop, StopReason, decide
from cluster.runs.attempt_summary import summarize_attempts
from cluster.runs.attempt_watch import Ending
from cluster.runs.outlook import has_all_rows, read_outlook, records_of_part
from cluster.runs.report import put_report
from cluster.runs.session import Session
from cluster.runs.spending import placement_of, teacher_usd

logger = logging.getLogger(__name__)

STORE_VARIABLE: Final = "ALPACA_JOBS_STORE"
RUN_VARIABLE: Final = "ALPACA_JOBS_RUN"
SESSION_VARIABLE: Final = "ALPACA_JOBS_SESSION"
UNTIL_VARIABLE: Final = "ALPACA_JOBS_UNTIL"
ATTEMPT_VARIABLE: Final = "ALPACA_JOBS_ATTEMPT"
PLACEMENT_VARIABLE: Final = "ALPACA_JOBS_PLACEMENT"
_SESSION: Final = "session"


def put_session(store: Store, session: Session) -> str:
    """Record what a launch or resume wants; returns the session's number as tasks carry it.

    Raises:
        AlreadyExists: somebody else resumed the run at the same moment.
    """
    first = AttemptLog(store, LAYOUT).newest() + 1
    return f"{put_next_record(store, _SESSION, {**session.to_json(), 'first_attempt': first}):06d}"


def session_numbers(store: Store) -> list[str]:
    """The sessions that a run has had, as tasks carry their numbers."""
    return [f"{number_of(key):06d}" for key in record_keys(store, _SESSION)]


class CloudRun:
    """One session of a run on a cloud.

    Args:
        store: the run's own folder of the store.
        session: what was launched or resumed.
        first: the session's first attempt; what came before does not count for its limits of crashes.
        number: the session's own number; a higher one in the store means that the run was resumed since.
        until: the stage after which this part of the run is over; None for the run's last part.
        handed_out: the attempt that was launched last, and where, as far as the caller remembers.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        session: Session,
        first: int,
        *,
        number: str,
        until: str | None = None,
        handed_out: tuple[int, Placement] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.session, self.plan = store, session, session.plan
        self.until = until
        self.candidates = next(
            part for part in self.plan.parts[::-1] if until is None or part.until == until
        ).candidates
        self._first, self._number, self._handed_out, self._clock = first, number, handed_out, clock
        self._log = AttemptLog(store, LAYOUT)
        self._refusals: list[Stop] = []
        self._impossible: dict[Placement, str] = {}
        # The ended attempts after which it was read, and what was read.
        self._outlooks: tuple[frozenset[int], Outlook | None] | None = None

    @classmethod
    def open(cls, environ: Mapping[str, str], *, clock: Callable[[], float] = time.time) -> CloudRun:
        """Find the session that a task belongs to, by its environment.

        Raises:
            RunNotFound: the environment names no session, or the store does not have it.
            CheckpointError: the store cannot be read.
        """
        try:
            root, run_id, number = (environ[name] for name in (STORE_VARIABLE, RUN_VARIABLE, SESSION_VARIABLE))
        except KeyError as exc:
            raise RunNotFound(f"The task's environment has no {exc.args[0]}; it was not made by alpaca-jobs.") from exc
        store = Store.open(root).child(run_id)
        try:
            body = store.get_record(f"control/{_SESSION}-{number}.json")
        except ObjectMissing:
            raise RunNotFound(f"{store.uri} has no session {number} of {run_id}; launch the job again.") from None
        handed_out = None
        if (attempt := environ.get(ATTEMPT_VARIABLE)) and (place := environ.get(PLACEMENT_VARIABLE)):
            handed_out = int(attempt), Placement.from_json(json.loads(place))
        session, first = Session.from_json(body), int(body["first_attempt"])
        until = environ.get(UNTIL_VARIABLE) or None
        return cls(store, session, first, number=number, until=until, handed_out=handed_out, clock=clock)

    @property
    def has_next_part(self) -> bool:
        """Whether other machines go on where this part ends."""
        return self.until != self.plan.parts[-1].until

    def decide(self) -> Decision:
        """What follows, by the table that the local supervisor uses too; a resume elsewhere or a cancel come first."""
        history = sorted([*self.history(), *self._refusals], key=_turn)
        if max(session_numbers(self.store), default="") > self._number:
            words = "Another launcher has resumed this run."
            return Decision(Action.FINISH, words, exit_code=3, reason=StopReason.SUPERSEDED)
        if CancelWatch(self.store).open_cancels():
            place = history[-1].placement if history else self.candidates[0]
            detail = "somebody asked for it (alpaca-jobs cancel)"
            history.append(Stop(self._log.newest(), StopReason.CANCELLED, place, self._clock(), detail=detail))
        left = [place for place in self.candidates if place not in self._impossible]
        if not left:
            why = "; ".join(dict.fromkeys(f"{place.name}: {words}" for place, words in self._impossible.items()))
            return Decision(Action.GIVE_UP, f"No place can be used. {why}", exit_code=3, reason=StopReason.CAPACITY)
        return decide(
            history, self.session.policy, left, self._clock(), spent_usd=self.spent_usd(), outlook=self._outlook(left)
        )

    def _outlook(self, places: Sequence[Placement]) -> Outlook | None:
        """What is left to do; read only where it can choose between spot and on demand, and once after each attempt.

        Whoever waits for capacity asks every few seconds, and a long run has thousands of events.
        """
        if self.session.policy.on_demand != "when-needed" or len({one.pricing for one in places}) < 2:
            return None
        ended = frozenset(record.number for record in self._log.records() if record.end is not None)
        if self._outlooks is None or self._outlooks[0] != ended:
            found = read_outlook(self.store, self.plan, num_nodes=places[0].num_nodes, until=self.until)
            self._outlooks = ended, found
        return self._outlooks[1]

    def history(self) -> list[Stop]:
        """The session's ended attempts, oldest first; for a resume, the loss before it comes first, to be avoided.

        What happened to an earlier part of the run says nothing about this one's machines.
        """
        records = records_of_part(self._log.records())
        commits = counting_commits(self._log.records(), list_commits(self.store, LAYOUT), LAYOUT)
        own = [record for record in records if record.number >= self._first]
        before = [record for record in records if record.number < self._first][-1:]
        kept = [stop for stop in stops_of(before, commits) if stop.reason in _REMEMBERED]
        return kept + stops_of(own, commits)

    def spent_usd(self) -> float:
        """Dollars so far; read only where a limit needs it."""
        if self.session.policy.max_usd is None:
            return 0.0
        return self.machines_usd() + (teacher_usd(read_events(self.store)) or 0.0)

    def machines_usd(self) -> float:
        """Dollars for the machines of all attempts so far; read only where a limit needs it."""
        if self.session.policy.max_usd is None:
            return 0.0
        attempts = summarize_attempts(self._log.records(), read_events(self.store))
        return sum(one.cost_usd or 0.0 for one in attempts)

    def next_number(self) -> int:
        """The number for the next attempt: after all that were claimed or ended."""
        return max((record.number for record in self._log.records()), default=0) + 1

    def end_lost(self, *, exit_code: int | None = None) -> None:
        """Record the end of attempts that could not do so themselves. Only when nothing of them runs any more.

        An attempt that never got as far as its claim is ended too: else a node that cannot begin would be bought again
        and again. Its machines count from the launch on.

        Args:
            exit_code: what the newest attempt's task ended with (65: its machine's set-up, sky/run.yaml); None where
                its machine was gone, or nobody could read it.
        """
        records = self._log.records()
        newest = max((record.number for record in records), default=0)
        never_began = self._handed_out is not None and self._handed_out[0] not in {record.number for record in records}
        for record in records:
            if record.end is None and record.claim is not None:
                began_s = seconds_of(record.claim["started_at"]) if "started_at" in record.claim else self._clock()
                until_s = alive_until_s(self.store, record.number, began_s=began_s, now=self._clock())
                code = exit_code if record.number == newest and not never_began else None
                self._end(record.number, judge(code, until_s - began_s), began_s, until_s, placement_of(record.claim))
        if self._handed_out is not None and never_began:
            number, place = self._handed_out
            began_s = self._launched_at_s(number)
            until_s = min(self._clock(), began_s + NOT_BEGUN_S)
            ending = NEVER_BEGAN if exit_code is None else judge(exit_code, until_s - began_s)
            self._end(number, ending, began_s, until_s, place)

    def failed_launch(self, number: int, place: Placement, *, seconds: float) -> None:
        """Record an attempt whose machines came and are gone before SkyPilot saw its task begin, and what they cost.

        Its node may have been at work by then: SkyPilot sees a task begin many seconds after it did.
        """
        self.end_lost()
        now = self._clock()
        self._end(number, NOT_READY, now - seconds, now, place)  # an end that is there stays

    def _launched_at_s(self, number: int) -> float:
        """When it was told that an attempt is started; now where nobody told, or it was refused since."""
        events = read_events(self.store, newest_batches=3)
        told = [event for event in events if event.kind == "attempt" and event.fields.get("number") == number]
        if not told or told[-1].fields.get("state") != "started":
            return self._clock()
        return min(seconds_of(told[-1].t), self._clock())

    def _end(self, number: int, ending: Ending, began_s: float, until_s: float, place: Placement | None) -> None:
        body = {
            "stop_reason": ending.reason.value, "detail": ending.detail, "retryable": ending.retryable,
            "exit_code": ending.exit_code, "seconds": round(max(until_s - began_s, 0.0), 3),
            "ended_at": iso_time(until_s), "by": "controller", "placement": place.to_json() if place else None,
        }  # fmt: skip
        self._log.put_end(number, body)

    def refused(self, place: Placement, detail: str) -> None:
        """Take note that a place had no machine. Kept in memory: after a restart it may well have one."""
        number = self.next_number()
        self._refusals.append(Stop(number, StopReason.CAPACITY, place, self._clock(), self._position(), detail[:500]))
        events = EventWriter(self.store, self._first, "supervisor", flush_s=0.2)
        events.emit("attempt", state="refused", number=number, place=place.name, detail=detail[:500])
        events.close()

    def cannot(self, place: Placement, detail: str) -> None:
        """Take note that waiting for a machine in a place is in vain: no permission, or no such machine."""
        self._impossible[place] = detail[:500]

    def tell(self, decision: Decision, **launch: Any) -> None:
        """Say what was decided, and what is launched, to whoever follows the run."""
        logger.info("%s: %s", decision.action, decision.words)
        events = EventWriter(self.store, self._first, "supervisor", flush_s=0.2)
        events.emit(
            "decision", action=decision.action.value, words=decision.words, wait_s=round(decision.wait_s, 3),
            places=[place.name for place in decision.placements],
        )  # fmt: skip
        if launch:
            events.emit("attempt", **launch)
        events.close()

    def close(self, decision: Decision) -> None:
        """Put the report and say the end, again without harm; what another launcher has resumed is theirs to end."""
        if decision.reason is StopReason.SUPERSEDED:
            return
        if decision.action not in (Action.FINISH, Action.GIVE_UP):
            raise ValueError(f"a run does not end with {decision.action}")
        outcome = replace(decision, exit_code=3 if decision.exit_code is None else decision.exit_code)
        put_report(self.store, self.plan, outcome, self._log.newest())
        events = EventWriter(self.store, self._first, "supervisor", flush_s=0.2)
        reason = decision.reason.value if decision.reason else ""
        events.emit("end", exit_code=outcome.exit_code, reason=reason, words=decision.words)
        events.close()

    def _position(self) -> tuple[str, int] | None:
        refs = counting_commits(self._log.records(), list_commits(self.store, LAYOUT), LAYOUT)
        return (refs[0].stage, refs[0].position) if refs else None


def parts_left(store: Store, plan: LaunchPlan) -> tuple[PlanPart, ...]:
    """The plan's parts without those whose stages are done: rows that are all there are not written again."""
    commits = counting_commits(AttemptLog(store, LAYOUT).records(), list_commits(store, LAYOUT), LAYOUT)
    return plan.parts[-1:] if has_all_rows(store, commits) else plan.parts


def _turn(stop: Stop) -> tuple[int, bool]:
    """When it was this stop's turn: a refusal has the number of the attempt that was to be, and comes before its end.

    Not by time, of which each machine has its own.
    """
    return stop.attempt, stop.reason is not StopReason.CAPACITY


_REMEMBERED = frozenset({StopReason.PREEMPTED, StopReason.LOST, StopReason.NODE_FAILURE, StopReason.DONE})


def stops_of(records: Sequence[AttemptRecord], commits: Sequence[CommitRef]) -> list[Stop]:
    """Ended attempts as the decision table takes them. Pure.

    Args:
        records: attempts by number; those without an end, or without a place, are left out.
        commits: commits that count, newest first. An attempt's position is the newest of them that it, or one before
            it, made: what later attempts add does not make its own crash look like progress.
    """
    stops = []
    for record in records:
        end = record.end
        raw = (end or {}).get("placement")
        place = Placement.from_json(raw) if raw else placement_of(record.claim)
        if end is None or place is None:
            continue
        reached = next((ref for ref in commits if ref.attempt <= record.number), None)
        stops.append(
            Stop(
                attempt=record.number,
                reason=StopReason(end.get("stop_reason", StopReason.LOST.value)),
                placement=place,
                at_s=seconds_of(end["ended_at"]) if end.get("ended_at") else 0.0,
                position=(reached.stage, reached.position) if reached else None,
                detail=str(end.get("detail", "")),
                retryable=bool(end.get("retryable", True)),
                exit_code=end.get("exit_code") if isinstance(end.get("exit_code"), int) else None,
            )
        )
    return stops
