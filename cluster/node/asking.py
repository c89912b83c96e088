"""How the generation stage's requests reach the teacher: one by one through actors, or in batches at half the price.

Both keep the same promises: a request is reserved before it is sent, its answer stored before it is returned.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from alpaca_jobs.generation.batch_lines import BATCHES_AT_ONCE
from alpaca_jobs.generation.completer import Absence
from alpaca_jobs.generation.rate_limit import RateGate
from alpaca_jobs.generation.teacher_request import TeacherAnswer, TeacherRequest
from alpaca_jobs.spec import DataSpec, TeacherSpec
from checkpoints.store import Store
from cluster.events import iso_time
from cluster.node.actor_runtime import ActorRuntime
from cluster.node.attempt_context import AttemptContext
from cluster.node.batch_actor import BatchActor
from cluster.node.batch_records import BatchRecord, BatchRecords, reserve_batch
from cluster.node.in_flight import in_flight_of
from cluster.node.ledger import Ledger
from cluster.node.teacher_actor import TeacherActor

_MOST_CALLS = 64  # a batch may be as small as one request
_CANCEL_LIMIT_S = 15.0
_SILENCE_S = 3.0  # without an answer, before anybody is asked why
_EXPECTED_ACCEPT_RATE = 0.5
"""Of a batch's tasks, before any is known: a whole batch is sent on it, so that too low a guess would cost money."""


class Asking(Protocol):
    """The teacher, as the stage sees it; one driver thread uses it.

    Attributes:
        capacity: requests that may be under way at once, now.
        first_yield: rows expected of a request before any was answered; None to find out from one row on.
        lands_soon: whether what is under way is answered within the seconds that a notice leaves.
    """

    first_yield: float | None
    lands_soon: bool

    @property
    def capacity(self) -> int:
        """As the attributes say."""

    def expects(self, request: TeacherRequest) -> bool:
        """Whether an earlier attempt has sent it, and its answer is still to come."""

    def send(self, requests: Sequence[TeacherRequest]) -> None:
        """Reserve requests and send them.

        Raises:
            BudgetExceeded, Superseded: as Ledger.reserve; nothing was sent.
        """

    def collect(self, timeout_s: float) -> list[TeacherAnswer]:
        """The answers that have come, settled in the ledger; waits for the first one for so long at most.

        Raises:
            TeacherError, StoreError, Superseded: of any request.
        """

    def waiting(self) -> Absence | None:
        """That the teacher answers nobody, and since when; None while it answers. Returns at once."""

    def let_land(self, limit_s: float, check: Callable[[], bool]) -> None:
        """One request failed for good: wait for the others as long as `check` says, so that what they cost is known."""

    def withdraw(self) -> None:
        """Spend no more: whatever can be taken back at the provider is."""

    def end(self) -> None:
        """End all actors."""


def start_asking(
    ctx: AttemptContext, runtime: ActorRuntime, teacher: TeacherSpec, ledger: Ledger, awaited: Sequence[BatchRecord]
) -> Asking:
    """Start the actors that a job asks its teacher with; `awaited` are the batches of earlier attempts."""
    kind = BatchAsking if teacher.batch_api else LiveAsking
    return kind(ctx, runtime, teacher, ledger, awaited)


def load_awaited(store: Store, run_id: str, teacher: TeacherSpec) -> list[BatchRecord]:
    """Read which batches of earlier attempts are not all answered yet; none for a teacher that is asked directly."""
    return BatchRecords(store, run_id).load_open() if teacher.batch_api else []


def _minted_key(data: DataSpec, teacher: TeacherSpec) -> str | None:
    """The key of a server that this attempt has started; actors began before it was made, and have it from nowhere."""
    is_ours = isinstance(data.teacher, TeacherSpec) and data.teacher.serve is not None
    return os.environ.get(teacher.api_key_env or "") if is_ours else None


def absence_of_all(absences: Sequence[Absence | None]) -> Absence | None:
    """What the busy actors tell together; None where any of them is answered, or none has told yet."""
    found = [one for one in absences if one is not None]
    if not found or len(found) < len(absences):
        return None
    first = min(found, key=lambda one: one.since_s)
    return replace(first, next_try_s=min(one.next_try_s for one in found))


def absence_words(absence: Absence) -> str:
    """The same as a sentence for people, true for as long as it lasts."""
    return f"waiting for the teacher since {iso_time(absence.since_s)[:19].replace('T', ' ')} UTC: {absence.words}"


class LiveAsking:
    """Every request a call of one of `data.num_actors` actors, which share one gate."""

    first_yield: float | None = None
    lands_soon: bool = True

    def __init__(
        self, ctx: AttemptContext, runtime: ActorRuntime, teacher: TeacherSpec, ledger: Ledger,
        awaited: Sequence[BatchRecord] = (),
    ) -> None:  # fmt: skip
        data = ctx.job.data
        self._in_flight = in_flight_of(data.num_actors, data.concurrency)
        self._runtime, self._ledger = runtime, ledger
        self._flying: dict[Any, tuple[float, int]] = {}  # calls: when each was made, and the place of its actor
        self._looks: list[Any] = []
        self._absences: list[Absence | None] = []
        self._answered_at = time.monotonic()
        self._gates = self._start_gate(data)
        self._actors = runtime.actors(
            TeacherActor, data.num_actors, teacher.model_dump(), ctx.store_uri, ctx.run_id, ctx.attempt,
            *map(runtime.peer, self._gates), concurrency=self._in_flight.most // data.num_actors + 1,
            key=_minted_key(data, teacher),
        )  # fmt: skip

    def _start_gate(self, data: DataSpec) -> list[Any]:
        """The one gate that all actors pass before they ask; none where one actor has all requests, or no limit is."""
        if data.num_actors == 1 or isinstance(data.teacher, str):
            return []
        return self._runtime.actors(RateGate, 1, concurrency=2 * self._in_flight.most, cpus=0)

    @property
    def capacity(self) -> int:
        """As Asking says."""
        return self._in_flight.capacity

    def expects(self, request: TeacherRequest) -> bool:
        """Never: what an attempt sends directly dies with it."""
        return False

    def send(self, requests: Sequence[TeacherRequest]) -> None:
        """As Asking says."""
        self._ledger.reserve(requests)
        for request in requests:
            place = request.number % len(self._actors)
            call = self._runtime.call(self._actors[place], "ask", request)
            self._flying[call] = (time.monotonic(), place)

    def collect(self, timeout_s: float) -> list[TeacherAnswer]:
        """As Asking says."""
        if not self._flying:
            return []
        under_way = len(self._flying)
        done, _ = self._runtime.wait(list(self._flying), timeout_s=timeout_s)
        self._in_flight.tell(time.monotonic(), [self._flying[call][0] for call in done], under_way=under_way)
        answers = []
        for call in done:
            answers.append(self._runtime.result(call))
            del self._flying[call]
            self._ledger.settle(answers[-1])
            self._answered_at = time.monotonic()
        return answers

    def waiting(self) -> Absence | None:
        """As Asking says; looked up while no answer comes, and known a moment later."""
        if time.monotonic() - self._answered_at < _SILENCE_S:
            self._looks, self._absences = [], []
            return None
        if self._looks:
            done, left = self._runtime.wait(self._looks, timeout_s=0)
            if left:
                return absence_of_all(self._absences)
            self._absences = [self._runtime.result(look) for look in done]
        busy = {place for _, place in self._flying.values()}  # an idle one has nothing to be refused
        self._looks = [self._runtime.call(self._actors[place], "absence") for place in sorted(busy)]
        return absence_of_all(self._absences)

    def let_land(self, limit_s: float, check: Callable[[], bool]) -> None:
        """As Asking says."""
        until = time.monotonic() + limit_s
        flying = list(self._flying)
        while flying and time.monotonic() < until and check():
            _, flying = self._runtime.wait(flying, timeout_s=0.5)

    def withdraw(self) -> None:
        """Nothing can be: what is under way is answered and billed within seconds."""

    def end(self) -> None:
        """As Asking says."""
        self._runtime.end_actors([*self._actors, *self._gates])


class BatchAsking:
    """Every so many requests a batch at the provider; those of earlier attempts are waited for first of all."""

    lands_soon: bool = False

    def __init__(
        self, ctx: AttemptContext, runtime: ActorRuntime, teacher: TeacherSpec, ledger: Ledger,
        awaited: Sequence[BatchRecord],
    ) -> None:  # fmt: skip
        data = ctx.job.data
        new_tasks = data.max_tasks_per_request - data.num_prompt_seeds
        self.first_yield: float | None = max(1.0, new_tasks * _EXPECTED_ACCEPT_RATE)
        self._ctx, self._runtime, self._ledger = ctx, runtime, ledger
        self._most = teacher.batch_requests  # in one batch
        (self._actor,) = runtime.actors(
            BatchActor, 1, teacher.model_dump(), ctx.store_uri, ctx.run_id, ctx.attempt, concurrency=_MOST_CALLS
        )
        self._calls: dict[Any, BatchRecord] = {}
        self._expected: dict[int, str] = {}
        for record in awaited:
            requests = [item.request for item in record.round.items]
            self._expected.update((request.number, request.digest) for request in requests)
            self._calls[runtime.call(self._actor, "see_through", record, False)] = record

    @property
    def capacity(self) -> int:
        """As Asking says."""
        return BATCHES_AT_ONCE * self._most

    def expects(self, request: TeacherRequest) -> bool:
        """As Asking says."""
        return self._expected.get(request.number) == request.digest

    def send(self, requests: Sequence[TeacherRequest]) -> None:
        """As Asking says."""
        for start in range(0, len(requests), self._most):
            chunk = list(requests[start : start + self._most])
            record = reserve_batch(self._ledger, self._ctx.run_id, self._ctx.attempt, chunk)
            self._calls[self._runtime.call(self._actor, "see_through", record, True)] = record

    def collect(self, timeout_s: float) -> list[TeacherAnswer]:
        """As Asking says."""
        if not self._calls:
            return []
        done, _ = self._runtime.wait(list(self._calls), timeout_s=timeout_s)
        answers: list[TeacherAnswer] = []
        for call in done:
            attempt = self._calls[call].attempt
            found: list[TeacherAnswer] = self._runtime.result(call)
            del self._calls[call]
            for answer in found:
                self._ledger.settle(answer, attempt)
                self._expected.pop(answer.number, None)
            answers += found
        return answers

    def waiting(self) -> Absence | None:
        """Never said: a batch takes hours where all is well."""
        return None

    def let_land(self, limit_s: float, check: Callable[[], bool]) -> None:
        """Nothing is waited for: a batch goes on without us, and a resume reads it."""

    def withdraw(self) -> None:
        """Have the provider end every batch; those that are made already stay ours to be read by a resume."""
        if self._calls:
            self._runtime.wait([self._runtime.call(self._actor, "cancel_all")], timeout_s=_CANCEL_LIMIT_S)

    def end(self) -> None:
        """As Asking says."""
        self._runtime.end_actors([self._actor])
