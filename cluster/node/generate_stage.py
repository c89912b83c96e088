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
from typing import Any

from alpaca_jobs.data.rows import Row, parse_rows, render_rows
from alpaca_jobs.errors import TeacherError
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.rate_limit import RateGate
from alpaca_jobs.generation.recipe import make_recipe
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.statistics import GenerationStatistics
from alpaca_jobs.spec import TeacherSpec
from checkpoints.keys import CommitRef
from checkpoints.reader import CommitReader
from checkpoints.writer import CommitWriter
from cluster.node.actor_runtime import ActorRuntime
from cluster.node.attempt_context import AttemptContext
from cluster.node.inputs import frozen_seed_tasks
from cluster.node.ledger import Ledger
from cluster.node.offline_server import teacher_endpoint
from cluster.node.teacher_actor import TeacherActor
from cluster.phase import Phase

logger = logging.getLogger(__name__)

ROWS_OBJECT = "rows.jsonl"
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
        state.rows += parse_rows(
            reader.read(ROWS_OBJECT), f"{ctx.store.uri}/{ctx.layout.commit_prefix(ref)}{ROWS_OBJECT}"
        )
        state.part, state.request = ref.position, int(reader.manifest.meta["last_request"])
        state.complete = bool(reader.manifest.meta["complete"])
        if any(entry.name == ANSWERS_OBJECT for entry in reader.manifest.objects):
            lines = bytes(reader.read(ANSWERS_OBJECT)).decode().splitlines()
            state.answers += [TeacherAnswer.from_json(json.loads(line)) for line in lines]
        meta = reader.manifest.meta
        state.statistics.add_part(state.request - int(meta["first_request"]) + 1, meta["num_rows"], meta["drops"])
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
        self._flying: dict[Any, TeacherRequest] = {}
        self._reported = 0.0

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
        with teacher_endpoint(self._data.teacher, ctx.scratch) as teacher:
            self._ledger = self._open_ledger(teacher)
            gates = self._start_gate()
            actors = self._runtime.actors(
                TeacherActor, self._data.num_actors, teacher.model_dump(), ctx.store_uri, ctx.run_id, ctx.attempt,
                *map(self._runtime.peer, gates), concurrency=self._data.concurrency,
            )  # fmt: skip
            try:
                while not self._state.complete and ctx.interruption.notice is None:
                    self._send(actors)
                    self._collect(timeout_s=0.2)
                if ctx.interruption.notice is not None:
                    self._leave()
            except TeacherError:
                self._let_land(teacher.timeout_s)
                raise
            finally:
                self._runtime.end_actors([*actors, *gates])

    def _start_gate(self) -> list[Any]:
        """The one gate that all actors pass before they ask; none where one actor has all requests, or no limit is."""
        if self._data.num_actors == 1 or self._data.teacher == "offline":
            return []
        capacity = self._data.num_actors * self._data.concurrency
        return self._runtime.actors(RateGate, 1, concurrency=2 * capacity, cpus=0)

    def _open_ledger(self, teacher: TeacherSpec) -> Ledger:
        ctx = self._ctx
        ledger = Ledger(
            ctx.store, attempt=ctx.attempt, fence=ctx.fence, teacher=teacher,
            budget_usd=ctx.job.limits.teacher_max_usd,
        )  # fmt: skip
        ledger.load()
        return ledger

    def _send(self, actors: Sequence[Any]) -> None:
        """Fill the free places: stored answers are taken as they are, the rest is reserved as one batch and sent."""
        capacity = self._data.num_actors * self._data.concurrency
        # One slow answer holds back those after it, which wait; asking goes on meanwhile, a few rounds ahead at most.
        ahead = min(_ROUNDS_AHEAD * capacity, self._wanted()) - len(self._flying) - len(self._arrived)
        free = min(capacity - len(self._flying), ahead)
        if free < max(1, min(capacity // 4, self._wanted() // 4)):
            return
        batch: list[TeacherRequest] = []
        while len(batch) < free and not self._out_of_requests():
            request = self._recipe.request(self._next_number)
            if request is None:
                break  # what it asks depends on answers that are still to come
            if (stored := self._ledger.find(request)) is not None:
                self._arrived[stored.number] = stored
                free -= 1
            elif self._is_affordable([*batch, request]):
                batch.append(request)
            else:
                break
            self._next_number += 1
        if batch:
            self._ledger.reserve(batch)
            for request in batch:
                call = self._runtime.call(actors[request.number % len(actors)], "ask", request)
                self._flying[call] = request

    def _is_affordable(self, batch: Sequence[TeacherRequest]) -> bool:
        """Whether the budget holds these, too; if not, what is under way is waited for, since it frees reservations.

        Raises:
            BudgetExceeded: nothing is under way any more, and not one request fits. What there is has been committed.
        """
        if self._ledger.has_room_for(batch):
            return True
        if len(batch) == 1 and not self._flying and self._state.request + 1 not in self._arrived:
            if self._part_first <= self._state.request:
                self._commit(complete=False)
            self._ledger.reserve(batch)
        return False

    def _wanted(self) -> int:
        """Requests worth having under way or waiting: what the missing rows need at the yield so far, and no more."""
        seen = self._state.statistics
        return self._recipe.num_wanted(seen.num_rows / seen.num_requests if seen.num_rows else None)

    def _out_of_requests(self) -> bool:
        return self._data.max_requests is not None and self._next_number > self._data.max_requests

    def _collect(self, *, timeout_s: float) -> None:
        """Take what arrived, consume what is next in order, commit whole parts."""
        self._ctx.interruption.check()
        if self._flying:
            done, _ = self._runtime.wait(list(self._flying), timeout_s=timeout_s)
            for call in done:
                answer = self._runtime.result(call)
                del self._flying[call]
                self._ledger.settle(answer)
                self._arrived[answer.number] = answer
        while self._state.request + 1 in self._arrived and not self._state.complete:
            self._consume(self._arrived.pop(self._state.request + 1))
        if self._out_of_requests() and not self._flying and not self._arrived:
            self._finish_short()
        self._report()

    def _consume(self, answer: TeacherAnswer) -> None:
        result = self._recipe.consume(answer)
        self._part_rows += result.rows
        if self._recipe.replays_answers:
            self._part_answers.append(answer)
        self._part.add(result)
        self._state.statistics.add(result)
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
            "teacher_usd": self._ledger.spent_usd,
        }  # fmt: skip
        writer.publish(meta=meta)
        state.part, state.complete = ref.position, complete
        self._part_rows, self._part, self._part_first = [], GenerationStatistics(), state.request + 1
        self._part_answers = []
        ctx.marker.reached("generate", ref.position)

    def _let_land(self, limit_s: float) -> None:
        """The teacher failed one request for good: wait for the others, so that what they cost is stored."""
        until = time.monotonic() + limit_s
        flying = list(self._flying)
        while flying and time.monotonic() < until and self._ctx.interruption.notice is None:
            self._ctx.interruption.check()
            _, flying = self._runtime.wait(flying, timeout_s=0.5)

    def _leave(self) -> None:
        """A notice came: send nothing more, take what still arrives in the window, commit it."""
        while self._flying and (self._ctx.interruption.seconds_left or 0.0) > _NOTICE_RESERVE_S:
            self._collect(timeout_s=0.1)
        if self._part_first <= self._state.request:
            self._commit(complete=self._state.complete)

    def _report(self) -> None:
        if time.monotonic() - self._reported < _REPORT_EVERY_S and not self._state.complete:
            return
        self._reported = time.monotonic()
        so_far = self._state.statistics
        accept_rate = so_far.accept_rate
        self._ctx.events.emit(
            "generation", rows=so_far.num_rows, target=self._data.num_rows, requests=self._state.request,
            accept_rate=None if accept_rate is None else round(accept_rate, 4), drops=so_far.to_json()["drops"],
            usd=self._ledger.spent_usd, in_flight=len(self._flying),
        )  # fmt: skip
