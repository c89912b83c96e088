"""The generation stage on a node: numbered requests to the teacher, results consumed in number order, rows committed.

Actors ask in parallel and answers arrive in any order, yet the rows do not depend on timing: request n's prompt
depends on (seed, n) alone, and the pipeline sees answer n only after answers 1 to n - 1. A part of rows is committed
every `data.part_requests` requests; an attempt starts after the newest part that counts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from alpaca_jobs.data.rows import Row, render_rows
from alpaca_jobs.errors import BudgetExceeded, TeacherError
from alpaca_jobs.generation.completer import Absence
from alpaca_jobs.generation.offline_batches import forget
from alpaca_jobs.generation.recipe import make_recipe
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.statistics import GenerationStatistics
from alpaca_jobs.generation.teacher_request import TeacherAnswer, TeacherRequest
from alpaca_jobs.spec import TeacherSpec
from checkpoints.keys import CommitRef
from checkpoints.reader import CommitReader
from checkpoints.writer import CommitWriter
from cluster.events import iso_time
from cluster.node.actor_runtime import ActorRuntime
from cluster.node.asking import absence_words, load_awaited, start_asking
from cluster.node.attempt_context import AttemptContext
from cluster.node.inputs import frozen_seed_tasks
from cluster.node.ledger import Ledger
from cluster.node.limits import read_limits, teacher_limits
from cluster.node.offline_server import offline_state, teacher_endpoint
from cluster.node.stored_rows import ROWS_OBJECT, read_rows
from cluster.phase import Phase
from cluster.recovery import StopReason

logger = logging.getLogger(__name__)

ANSWERS_OBJECT = "answers.jsonl"
_REPORT_EVERY_S = 0.5
_ROUNDS_AHEAD = 4
_NOTICE_RESERVE_S = 3.0  # of a notice's window, kept for the commit of the rows at hand


@dataclass
class GeneratedRows:
    """Rows so far and where the next part begins; parts and requests count from 1.

    `answers`: those that were consumed, for a recipe that replays them (`Recipe.replays_answers`).
    """

    rows: list[Row] = field(default_factory=list)
    part: int = 0
    request: int = 0
    complete: bool = False
    answers: list[TeacherAnswer] = field(default_factory=list)
    statistics: GenerationStatistics = field(default_factory=GenerationStatistics)


def read_generated(ctx: AttemptContext, parts: Sequence[CommitRef]) -> GeneratedRows:
    """Read the rows of the parts that count (newest first, as lineage gives them), every byte verified.

    Raises:
        Damaged: a part is damaged. Nothing falls back here: rows that later state was made from cannot be replaced.
    """
    state = GeneratedRows()
    for ref in reversed(parts):
        reader = CommitReader.open(ctx.store, ctx.layout, ref)
        state.rows += read_rows(ctx.store, [ref])
        state.part, state.request = ref.position, int(reader.manifest.meta["last_request"])
        state.complete = bool(reader.manifest.meta["complete"])
        if any(entry.name == ANSWERS_OBJECT for entry in reader.manifest.objects):
            lines = bytes(reader.read(ANSWERS_OBJECT)).decode().splitlines()
            state.answers += [TeacherAnswer.from_json(json.loads(line)) for line in lines]
        meta = reader.manifest.meta
        state.statistics.add_part(
            state.request - int(meta["first_request"]) + 1, meta["num_rows"], meta["drops"], meta.get("tokens")
        )
    return state


class GenerateStage:
    """Brings `state` to `data.num_rows` rows; one object per attempt."""

    def __init__(self, ctx: AttemptContext, runtime: ActorRuntime, state: GeneratedRows) -> None:
        self._ctx = ctx
        self._runtime = runtime
        self._state = state
        self._data = ctx.job.data
        self._part_rows: list[Row] = []
        self._part = GenerationStatistics()
        self._part_answers: list[TeacherAnswer] = []
        self._part_first = state.request + 1
        self._next_number = state.request + 1
        self._arrived: dict[int, TeacherAnswer] = {}
        self._under_way: set[int] = set()
        self._reported = 0.0
        self._told_request = state.request
        self._is_waiting = False

    def run(self) -> None:
        """Generate until there are enough rows, or a notice ends the attempt (what was consumed is committed).

        Raises:
            BudgetExceeded, TeacherError, StoreError, Superseded: the attempt ends; all paid answers are stored.
        """
        ctx = self._ctx
        ctx.marker.enter(Phase.GENERATION)
        seeds = load_seed_tasks(frozen_seed_tasks(ctx.store))
        self._recipe = make_recipe(self._data, seeds, self._state.rows, self._state.answers)
        self._state.answers = []
        rows_before = self._state.statistics.num_rows
        with teacher_endpoint(
            self._data.teacher, ctx.scratch, run_id=ctx.run_id, num_gpus=ctx.gpus_per_node, may_wait=self._may_wait
        ) as teacher:
            awaited = load_awaited(ctx.store, ctx.run_id, teacher)
            self._ledger = self._open_ledger(teacher, [record.key for record in awaited])
            self._asking = start_asking(ctx, self._runtime, teacher, self._ledger, awaited)
            try:
                while not self._state.complete and ctx.interruption.notice is None:
                    self._send()
                    self._collect(timeout_s=0.2)
                if ctx.interruption.notice is not None:
                    self._leave()
                else:
                    self._asking.withdraw()  # the rows are there
            except BudgetExceeded:
                if self._part_first <= self._state.request:
                    self._commit(complete=False)
                self._asking.withdraw()
                raise
            except TeacherError as exc:
                self._asking.let_land(teacher.timeout_s, self._may_wait)
                if self._part_first <= self._state.request:
                    self._commit(complete=False)
                exc.had_given_rows = self._state.statistics.num_rows > rows_before
                raise
            finally:
                if self._told_request != self._state.request:
                    self._tell()  # what was told last is of some rows ago
                self._asking.end()
        if self._state.complete and self._data.teacher == "offline-batch":
            forget(offline_state(ctx.run_id))

    def _open_ledger(self, teacher: TeacherSpec, awaited: Sequence[str]) -> Ledger:
        ctx = self._ctx
        limits = read_limits(ctx.store, ctx.job.limits)
        if not teacher.is_priced:
            limits = limits.model_copy(update={"max_usd": None})  # the machines alone are watched for it
        ledger = Ledger(
            ctx.store, attempt=ctx.attempt, fence=ctx.fence, teacher=teacher,
            limit=teacher_limits(limits, ctx.log.records()),
        )  # fmt: skip
        ledger.load(awaited)
        return ledger

    def _send(self) -> None:
        """Fill the free places: stored answers are taken as they are, the rest is reserved as one batch and sent."""
        capacity, under_way = self._asking.capacity, len(self._under_way)
        # One slow answer holds back those after it, which wait; asking goes on meanwhile, a few rounds ahead at most.
        ahead = min(_ROUNDS_AHEAD * capacity, self._wanted()) - under_way - len(self._arrived)
        free = min(capacity - under_way, ahead)
        if free < max(1, min(capacity // 4, self._wanted() // 4)):
            return
        batch: list[TeacherRequest] = []
        room = self._ledger.room()
        while len(batch) < free and not self._out_of_requests():
            request = self._recipe.request(self._next_number)
            if request is None:
                break  # what it asks depends on answers that are still to come
            if (stored := self._ledger.find(request)) is not None:
                self._arrived[stored.number] = stored
                free -= 1
            elif self._asking.expects(request):
                self._under_way.add(request.number)
                free -= 1
            elif room.take(request):
                batch.append(request)
            else:
                # What is under way is waited for, since it frees most of its reservation.
                self._check_hope(request, is_first=not batch)
                break
            self._next_number += 1
        if batch:
            self._send_batch(batch)

    def _send_batch(self, batch: Sequence[TeacherRequest]) -> None:
        """Reserve and send; what the budget does not hold after all is left for later, while answers are to come.

        The limit comes down between a look at its room and the reservation, where machines are paid from it too.

        Raises:
            BudgetExceeded: nothing is under way whose answer could make room.
        """
        try:
            self._asking.send(batch)
        except BudgetExceeded:
            batch, refused = self._ledger.split_reserved(batch)  # batches at the provider are reserved one by one
            self._next_number = refused[0].number
            if not batch and self._waits_for_nothing:
                raise
        self._under_way.update(request.number for request in batch)

    @property
    def _waits_for_nothing(self) -> bool:
        return not self._under_way and self._state.request + 1 not in self._arrived

    def _check_hope(self, request: TeacherRequest, *, is_first: bool) -> None:
        """Give up if the budget does not hold one request more and nothing is under way that could change that.

        Raises:
            BudgetExceeded: nothing is under way.
        """
        if is_first and self._waits_for_nothing:
            self._asking.send([request])
            self._under_way.add(request.number)  # a fraction of a cent was left after all
            self._next_number += 1

    def _wanted(self) -> int:
        """Requests worth having under way or waiting: what the missing rows need at the yield so far, and no more."""
        seen = self._state.statistics
        return self._recipe.num_wanted(
            seen.num_rows / seen.num_requests if seen.num_rows else self._asking.first_yield
        )  # fmt: skip

    def _out_of_requests(self) -> bool:
        return self._data.max_requests is not None and self._next_number > self._data.max_requests

    def _collect(self, *, timeout_s: float) -> None:
        """Take what arrived, consume what is next in order, commit whole parts."""
        self._ctx.interruption.check()
        for answer in self._asking.collect(timeout_s):
            if answer.number in self._under_way:  # others are found again in the store, when their turn comes
                self._under_way.remove(answer.number)
                self._arrived[answer.number] = answer
        while self._state.request + 1 in self._arrived and not self._state.complete:
            self._consume(self._arrived.pop(self._state.request + 1))
        if self._out_of_requests() and not self._under_way and not self._arrived:
            self._finish_short()
        self._report()

    def _consume(self, answer: TeacherAnswer) -> None:
        result = self._recipe.consume(answer)
        self._part_rows += result.rows
        if self._recipe.replays_answers:
            self._part_answers.append(answer)
        self._part.add(result)
        self._state.statistics.add(result)
        for counted in (self._part, self._state.statistics):
            counted.tokens.add(answer.prompt_tokens, answer.completion_tokens)
        self._state.request = answer.number
        self._state.statistics.check_progress(answer.text)
        enough = self._state.statistics.num_rows >= self._data.num_rows
        if enough or answer.number - self._part_first + 1 >= self._data.part_requests:
            self._commit(complete=enough)

    def _finish_short(self) -> None:
        have = self._state.statistics.num_rows
        logger.warning("data.max_requests reached with %d of %d rows; going on with those", have, self._data.num_rows)
        self._commit(complete=True)

    def _commit(self, *, complete: bool) -> None:
        """Commit the rows at hand as the next part."""
        ctx, state = self._ctx, self._state
        ctx.fence.check()  # before a byte is stored; the writer asks again before the manifest
        ref = CommitRef("generate", state.part + 1, ctx.attempt)
        writer = CommitWriter(ctx.store, ctx.layout, ref, fence=ctx.fence)
        writer.put(ROWS_OBJECT, render_rows(self._part_rows))
        if self._part_answers:
            lines = [json.dumps(answer.to_json()) for answer in self._part_answers]
            writer.put(ANSWERS_OBJECT, "\n".join(lines).encode())
        state.rows += self._part_rows
        meta = {
            "first_request": self._part_first, "last_request": state.request, "num_rows": len(self._part_rows),
            "rows_total": len(state.rows), "drops": self._part.to_json()["drops"], "complete": complete,
            "teacher_usd": self._ledger.spent_usd, "tokens": self._part.tokens.to_json(),
            "tokens_total": state.statistics.tokens.to_json(),
        }  # fmt: skip
        writer.publish(meta=meta)
        state.part, state.complete = ref.position, complete
        self._part_rows, self._part, self._part_first = [], GenerationStatistics(), state.request + 1
        self._part_answers = []
        ctx.marker.reached("generate", ref.position)

    def _may_wait(self) -> bool:
        self._ctx.interruption.check()
        return self._ctx.interruption.notice is None

    def _leave(self) -> None:
        """A notice came: send nothing more, take what still arrives in the window, commit it.

        A run whose machine goes comes back and reads its batches; one that somebody stops shall cost no more.
        """
        interruption = self._ctx.interruption
        lands_soon = self._asking.lands_soon
        while lands_soon and self._under_way and (interruption.seconds_left or 0.0) > _NOTICE_RESERVE_S:
            self._collect(timeout_s=0.1)
        if self._part_first <= self._state.request:
            self._commit(complete=self._state.complete)
        if interruption.notice is not None and interruption.notice.reason is not StopReason.PREEMPTED:
            self._asking.withdraw()

    def _report(self) -> None:
        if time.monotonic() - self._reported < _REPORT_EVERY_S and not self._state.complete:
            return
        self._reported = time.monotonic()
        waiting = self._asking.waiting()
        words = None if waiting is None else absence_words(waiting)
        if (words is not None) != self._is_waiting:
            logger.warning("%s", words or "the teacher answers again")
        self._is_waiting = words is not None
        self._tell(waiting)

    def _tell(self, waiting: Absence | None = None) -> None:
        self._told_request = self._state.request
        away = None if waiting is None else absence_words(waiting)
        so_far = self._state.statistics
        accept_rate = so_far.accept_rate
        self._ctx.events.emit(
            "generation", rows=so_far.num_rows, target=self._data.num_rows, requests=self._state.request,
            accept_rate=None if accept_rate is None else round(accept_rate, 4), drops=so_far.to_json()["drops"],
            usd=self._ledger.spent_usd, in_flight=len(self._under_way), tokens=so_far.tokens.to_json(),
            waiting=away, waiting_since=None if waiting is None else iso_time(waiting.since_s),
            next_try_at=None if waiting is None else iso_time(waiting.next_try_s),
        )  # fmt: skip
