"""Observe, decide, act: keeps one run going on the local backend until it is done or given up.

    python -m cluster.local.supervisor --home DIR --run RUN_ID

`launch` and `resume` start it detached, so it survives their terminal. It owns clock, backend and store; what to do
is `recovery.decide`'s to say. SIGTERM or SIGINT stop the node with notice and leave; a second one does not wait.
Killed with SIGKILL, it leaves a node that goes on alone; the next supervisor adopts it.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alpaca_jobs.run_layout import LAYOUT
from checkpoints.attempts import AttemptLog
from checkpoints.errors import CheckpointError
from checkpoints.lineage import AttemptRecord, counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.backend import Backend, Handle
from cluster.control import CancelWatch
from cluster.errors import ClusterError, LaunchFailed, NoCapacity, RunActive
from cluster.event_reading import EventReader, read_events
from cluster.events import EventLogHandler, EventWriter, seconds_of, utc_now
from cluster.exits import Notice
from cluster.local.backend import LocalBackend
from cluster.phase import last_marked_s, read_marks
from cluster.plan import Placement
from cluster.recovery import Action, Decision, Stop, StopReason, decide
from cluster.runs.attempt_summary import summarize_attempts
from cluster.runs.attempt_watch import Ask, AttemptWatch, Ending, patiently
from cluster.runs.home import Home, RunFolder, read_json, write_json
from cluster.runs.report import put_report
from cluster.runs.session import Session
from cluster.runs.spending import placement_of, teacher_usd

logger = logging.getLogger(__name__)


class Supervisor:
    """Keeps one run going; one object per process.

    Args:
        session: plan, limits and timing.
        store: the run's own folder of the store.
        backend: where nodes run.
        folder: the run's files on this machine.
        events: where to tell what happens.
    """

    def __init__(
        self, session: Session, store: Store, backend: Backend, folder: RunFolder, events: EventWriter
    ) -> None:
        self._session, self._store, self._backend, self._folder, self._events = session, store, backend, folder, events
        self._plan, self._timing, self._policy = session.plan, session.timing, session.policy
        self._log = AttemptLog(store, LAYOUT)
        self._cancels = CancelWatch(store)
        self._reader = EventReader(store)
        self._history: list[Stop] = []
        self._handed_out = 0
        self._place = self._plan.candidates[0]
        self._signals = 0
        self._look_at: float = 0.0
        self._started_at: float | None = None  # of the attempt that runs, monotonic
        self._ended_usd = 0.0
        self._teacher_usd = 0.0

    def leave(self) -> None:
        """Stop the node with notice and end the session; called again, without notice. Safe in a signal handler."""
        self._signals += 1

    def run(self) -> int:
        """Go on until there is nothing more to do; returns the exit code.

        Where the store or this machine fails the supervisor itself, the node is stopped with notice too: nothing may
        run that nobody watches.
        """
        try:
            return self._go_on()
        except (ClusterError, CheckpointError) as exc:
            logger.exception("the supervisor cannot go on")
            for handle in self._backend.find(self._plan.run_id):
                self._backend.cancel(handle, Notice(StopReason.CANCELLED, self._timing.notice_s))
            exit_code = exc.exit_code if isinstance(exc, ClusterError) else 3
            words = f"{exc} Nothing is left running. Go on with `alpaca-jobs resume {self._plan.run_id}`."
            self._say_end(exit_code, StopReason.STORE_FAILURE.value, words)
            return exit_code

    def _go_on(self) -> int:
        self._take_over()
        while True:
            decision = decide(
                self._history, self._policy, self._plan.candidates, time.time(), spent_usd=self._spent_usd()
            )
            self._tell(decision)
            match decision.action:
                case Action.RELAUNCH:
                    self._history.append(self._attempt(decision.placements[0]))
                case Action.WAIT:
                    if (stop := self._wait(decision.wait_s)) is not None:
                        self._history.append(stop)
                case Action.FINISH | Action.GIVE_UP:
                    return self._finish(decision)

    def _take_over(self) -> None:
        """Begin where an earlier supervisor left: adopt its newest live node, end everything else of it."""
        records = patiently(self._log.records, self._timing.store_patience_s)
        self._handed_out = max([*(record.number for record in records), *self._folder.node_attempts()], default=0)
        alive = {handle.attempt: handle for handle in self._backend.find(self._plan.run_id)}
        newest = alive.pop(max(alive), None) if alive else None
        for handle in alive.values():
            logger.warning("attempt %d has left processes behind; killing them", handle.attempt)
            self._backend.kill(handle)
        gone = [record for record in records if newest is None or record.number != newest.attempt]
        self._ended_usd = self._cost_of(gone)
        for record in gone:
            if record.end is None:
                self._end_unseen(record)
        if newest is not None:
            claim = next((record.claim for record in records if record.number == newest.attempt), None)
            began_at = seconds_of(claim["started_at"]) if claim and "started_at" in claim else time.time()
            self._history.append(self._adopt(newest, already_s=max(time.time() - began_at, 0.0)))
        elif gone and (place := placement_of(gone[-1].claim)) is not None:
            self._remember(StopReason((gone[-1].end or {}).get("stop_reason", "lost")), gone[-1].number, place)

    def _end_unseen(self, record: AttemptRecord) -> None:
        """Record the end of an attempt that died when nobody watched: what its node marked on its disk, if that is
        this machine's, says how far it came and until when it lived at least.
        """
        scratch, claim = self._folder.scratch(record.number), record.claim or {}
        lived_until = last_marked_s(scratch)
        seconds = 0.0
        if lived_until is not None and "started_at" in claim:
            seconds = max(lived_until - seconds_of(claim["started_at"]), 0.0)
        ending = Ending(StopReason.LOST, "its supervisor was gone", reached=read_marks(scratch).reached)
        self._put_end(record.number, ending, seconds, placement_of(record.claim))

    def _cost_of(self, records: Sequence[AttemptRecord]) -> float:
        """Dollars for the machines of earlier sessions; read only where a limit needs it."""
        if self._policy.max_usd is None or not records:
            return 0.0
        events = patiently(lambda: read_events(self._store), self._timing.store_patience_s)
        return sum(one.cost_usd or 0.0 for one in summarize_attempts(records, events))

    def _adopt(self, handle: Handle, *, already_s: float) -> Stop:
        """Watch a node that an earlier supervisor started; where it may not run any more, send it off with notice."""
        place = handle.placement
        if any(place == candidate for candidate in self._plan.candidates):
            logger.info("attempt %d still runs in %s; watching it again", handle.attempt, place.name)
            self._events.emit("attempt", state="adopted", number=handle.attempt, place=place.name)
            return self._watch(handle, already_s=already_s)
        logger.info("attempt %d runs in %s, which is excluded now; it has to leave", handle.attempt, place.name)
        self._backend.cancel(handle, Notice(StopReason.PREEMPTED, self._timing.notice_s))
        return self._after(handle, Ending(StopReason.PREEMPTED, f"{place.name} is excluded now"), already_s)

    def _remember(self, reason: StopReason, number: int, place: Placement) -> None:
        """Let the first launch of a resume avoid the region that was lost, and a run that is done be done.

        Nothing else of the past counts again: crashes, a budget or a cancel are what the user resumes in spite of.
        """
        if reason in (StopReason.DONE, StopReason.PREEMPTED, StopReason.LOST, StopReason.NODE_FAILURE):
            self._history.append(Stop(number, reason, place, time.time(), self._position()))

    def _attempt(self, place: Placement) -> Stop:
        """Start the next attempt in a place and watch it to its end."""
        self._place = place
        if (ask := self._ask()) is not None:
            return self._stop(self._handed_out, Ending(ask.reason, ask.detail))
        number = 1 + max(self._handed_out, patiently(self._log.newest, self._timing.store_patience_s))
        try:
            handle = self._backend.launch(self._plan, place, number)
        except NoCapacity as exc:
            self._events.emit("attempt", state="refused", number=number, place=place.name, detail=str(exc))
            return self._stop(number, Ending(StopReason.CAPACITY, str(exc)))
        except LaunchFailed as exc:
            return self._stop(number, Ending(StopReason.NODE_FAILURE, str(exc)))
        self._handed_out = number
        self._events.emit("attempt", state="started", number=number, place=place.name, placement=place.to_json())
        return self._watch(handle)

    def _watch(self, handle: Handle, *, already_s: float = 0.0) -> Stop:
        self._place = handle.placement  # what runs is what is paid for
        self._started_at = time.monotonic() - already_s
        ending = AttemptWatch(handle, self._backend, self._log, self._timing, ask=self._ask).run()
        seconds, self._started_at = time.monotonic() - self._started_at, None
        return self._after(handle, ending, seconds)

    def _after(self, handle: Handle, ending: Ending, seconds: float) -> Stop:
        """Record an attempt's end where it could not do so itself."""
        self._place = handle.placement
        if ending.reason is not StopReason.SUPERSEDED and not ending.is_recorded:
            self._put_end(handle.attempt, ending, seconds, handle.placement)
        self._ended_usd += handle.placement.usd_for(seconds) or 0.0
        stop = self._stop(handle.attempt, ending)
        logger.info("attempt %d ended: %s (%s)", handle.attempt, ending.reason, ending.detail)
        self._events.emit(
            "attempt", state="ended", number=handle.attempt, place=handle.placement.name, reason=ending.reason.value,
            detail=ending.detail, reached=ending.reached, seconds=round(seconds, 3), position=stop.position,
        )  # fmt: skip
        return stop

    def _put_end(self, number: int, ending: Ending, seconds: float, place: Placement | None) -> None:
        body = {
            "stop_reason": ending.reason.value, "detail": ending.detail, "retryable": ending.retryable,
            "exit_code": ending.exit_code, "seconds": round(seconds, 3), "ended_at": utc_now(), "by": "supervisor",
            "reached": ending.reached, "placement": place.to_json() if place else None,
        }  # fmt: skip
        patiently(lambda: self._log.put_end(number, body), self._timing.store_patience_s)

    def _stop(self, number: int, ending: Ending) -> Stop:
        return Stop(
            attempt=number, reason=ending.reason, placement=self._place, at_s=time.time(), position=self._position(),
            detail=ending.detail, retryable=ending.retryable, exit_code=ending.exit_code,
        )  # fmt: skip

    def _position(self) -> tuple[str, int] | None:
        """The newest work that counts."""

        def newest() -> tuple[str, int] | None:
            refs = counting_commits(self._log.records(), list_commits(self._store, LAYOUT), LAYOUT)
            return (refs[0].stage, refs[0].position) if refs else None

        return patiently(newest, self._timing.store_patience_s)

    def _wait(self, wait_s: float) -> Stop | None:
        """Wait, unless somebody wants the run to stop."""
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            if (ask := self._ask()) is not None:
                return self._stop(self._handed_out, Ending(ask.reason, ask.detail))
            time.sleep(min(self._timing.poll_s, max(until - time.monotonic(), 0.0)))
        return None

    def _ask(self) -> Ask | None:
        """Whether somebody wants the run to stop: a signal to us, a cancel in the store, the deadline, the budget."""
        if self._signals:
            return Ask(StopReason.CANCELLED, "its supervisor was told to leave", at_once=self._signals > 1)
        now = time.monotonic()
        if now < self._look_at:
            return None
        self._look_at = now + self._timing.store_poll_s
        if self._policy.deadline_at_s is not None and time.time() >= self._policy.deadline_at_s:
            return Ask(StopReason.DEADLINE, "the deadline has come")
        if self._policy.max_usd is not None and (spent := self._spent_usd()) >= self._policy.max_usd > 0:
            return Ask(StopReason.BUDGET, f"{spent:.2f} of {self._policy.max_usd:.2f} USD are spent")
        try:
            is_cancelled = bool(self._cancels.open_cancels())
        except CheckpointError as exc:
            logger.warning("the store does not say whether the run was cancelled: %s", exc)
            return None
        return Ask(StopReason.CANCELLED, "somebody asked for it (alpaca-jobs cancel)") if is_cancelled else None

    def _spent_usd(self) -> float:
        """Dollars so far; the teacher's part is read only where a limit needs it."""
        if self._policy.max_usd is not None:
            try:
                newest = teacher_usd(self._reader.poll())
            except CheckpointError as exc:
                logger.warning("the teacher's cost cannot be read now: %s", exc)
                newest = None
            self._teacher_usd = self._teacher_usd if newest is None else newest
        running_s = time.monotonic() - self._started_at if self._started_at is not None else 0.0
        return self._ended_usd + self._teacher_usd + (self._place.usd_for(running_s) or 0.0)

    def _tell(self, decision: Decision) -> None:
        logger.info("%s: %s", decision.action, decision.words)
        self._events.emit(
            "decision", action=decision.action.value, words=decision.words, wait_s=round(decision.wait_s, 3),
            places=[place.name for place in decision.placements],
        )  # fmt: skip

    def _finish(self, decision: Decision) -> int:
        """Put the report, say the end. A run that somebody else took over is theirs to report."""
        exit_code = decision.exit_code if decision.exit_code is not None else 3
        reason = decision.reason.value if decision.reason else ""
        self._events.flush()
        if decision.reason is not StopReason.SUPERSEDED:
            outcome = replace(decision, exit_code=exit_code)
            patiently(
                lambda: put_report(self._store, self._plan, outcome, self._handed_out), self._timing.store_patience_s
            )
        # The last word: whoever follows finds the report there already.
        self._say_end(exit_code, reason, decision.words)
        return exit_code

    def _say_end(self, exit_code: int, reason: str, words: str) -> None:
        """Say the last word in the store, and on this machine: the store may be what failed."""
        self._events.emit("end", exit_code=exit_code, reason=reason, words=words)
        write_json(self._folder.last_word, {"exit_code": exit_code, "reason": reason, "words": words})


def supervise(home: Home, run_id: str) -> int:
    """Run the supervisor of a session that `launch` or `resume` has written; returns the exit code.

    Raises:
        RunActive: this machine has a supervisor for the run already.
        ClusterError: there is no session.
    """
    folder = home.run(run_id)
    with folder.lock():
        body = read_json(folder.session)
        if body is None:
            raise ClusterError(f"{folder.session} is not there. Start the run with `alpaca-jobs launch` or `resume`.")
        session = Session.from_json(body)
        folder.last_word.unlink(missing_ok=True)
        store = Store.open(session.plan.store_uri).child(run_id)
        first = patiently(AttemptLog(store, LAYOUT).newest, session.timing.store_patience_s) + 1
        events = EventWriter(store, first, "supervisor", flush_s=0.2)
        handler = EventLogHandler(events, logging.WARNING)
        logging.getLogger().addHandler(handler)
        backend = LocalBackend(home, command=session.node_command)
        supervisor = Supervisor(session, store, backend, folder, events)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.leave())
        try:
            return supervisor.run()
        finally:
            logging.getLogger().removeHandler(handler)
            events.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.local.supervisor", description="Keeps one run going.")
    parser.add_argument("--home", required=True, type=Path, help="folder of this machine's state")
    parser.add_argument("--run", required=True, help="run id")
    given = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )  # fmt: skip
    try:
        return supervise(Home(given.home), given.run)
    except RunActive as exc:
        logger.error("%s", exc)
        return exc.exit_code
    except (ClusterError, CheckpointError) as exc:
        logger.exception("the supervisor of %s stops: %s", given.run, exc)
        return 3


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # a store's own threads must not keep a supervisor alive whose work is over
