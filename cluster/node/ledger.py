"""What the teacher was asked, what it answered, and what that cost: every request is reserved before it is sent.

    ledger/attempt-000001/batch-000004.json    requests about to be sent, each at its worst-case price; put once
                                               (requests for the teacher's Batch API: see batch_records.py)
    answers/request-000123/attempt-000001.json one paid answer, put once before anything is made of it

Money spent is the sum over stored answers, tries of unknown cost at their worst case; a reservation without an answer
counts at its worst case, because the attempt that made it may have died after the teacher had started to bill. An
answer is found again by request number and digest, whichever attempt asked: it is a fact about the teacher, not state
of an attempt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from alpaca_jobs.errors import BudgetExceeded
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.pricing import num_billable_tries, worst_try_usd
from alpaca_jobs.spec import TeacherSpec
from checkpoints.fence import Fence
from checkpoints.store import PUT_BACK, Store
from cluster.node.limits import TeacherLimit

_ANSWER = re.compile(r"answers/request-(\d{6})/attempt-(\d{6})\.json")
_READ_THREADS = 16  # a long run has thousands of answers, and a store far away takes its time for each
_BATCH = re.compile(r"ledger/attempt-(\d{6})/batch-(\d{6})\.json")
ADVICE = f"Without it nobody knows what the teacher was paid for, so it is asked for nothing more. {PUT_BACK}"
"""What there is to do about a damaged record of what was asked and answered."""


def answer_key(request: int, attempt: int) -> str:
    """Where one answer lies, relative to the run."""
    return f"answers/request-{request:06d}/attempt-{attempt:06d}.json"


def batch_key(attempt: int, batch: int) -> str:
    """Where one batch of reservations lies, relative to the run."""
    return f"ledger/attempt-{attempt:06d}/batch-{batch:06d}.json"


def worst_case_usd(request: TeacherRequest, teacher: TeacherSpec) -> float | None:
    """Most dollars a request can cost with all its tries, None while a price is unknown."""
    one_try = worst_try_usd(teacher, request.prompt, request.max_tokens)
    return None if one_try is None else one_try * num_billable_tries(teacher)


@dataclass(frozen=True)
class Asked:
    """How often requests were asked: the sum over attempts, and how many different ones."""

    sent: int
    different: int

    @property
    def repeated(self) -> int:
        """Requests asked once more than needed; a reservation counts as asked, so this is an upper bound."""
        return self.sent - self.different


class Ledger:
    """One attempt's view of the ledger; one driver per attempt uses it, from one thread.

    Args:
        store: the run's folder.
        teacher: for its prices.
        limit: says at any moment what the teacher may have cost over all attempts, at most (cluster/node/limits.py).
    """

    def __init__(
        self, store: Store, *, attempt: int, fence: Fence, teacher: TeacherSpec,
        limit: Callable[[], TeacherLimit | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store = store
        self._attempt = attempt
        self._fence = fence
        self._teacher = teacher
        self._limit = limit
        self._batches = 0
        self._answers: dict[int, list[int]] = {}
        self._spent_usd = 0.0
        self._open: dict[tuple[int, int], float] = {}  # by attempt and request

    def load(self, awaited: Collection[str] = ()) -> None:
        """Read what earlier attempts asked and got; call once, before anything is reserved.

        Args:
            awaited: keys of earlier reservations whose answers are still to come (batch_records.py).
        """
        answered: set[tuple[int, int]] = set()
        for key in self._store.list("answers/"):
            if match := _ANSWER.fullmatch(key):
                request, attempt = int(match[1]), int(match[2])
                answered.add((request, attempt))
                self._answers.setdefault(request, []).append(attempt)
        if not self._teacher.price_per_million_input_usd and not self._teacher.price_per_million_output_usd:
            return  # free, or of unknown price: there is nothing to add up
        # Also without a limit of the teacher's own: what is told here counts against limits.max_usd.
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            for answer in pool.map(lambda place: self._read(*place), sorted(answered)):
                self._spent_usd += answer.at_most_usd or 0.0
        for key, attempt, body in _batches(self._store):
            for entry in body["requests"]:
                if (entry["number"], attempt) in answered:
                    continue
                if key in awaited:
                    self._open[attempt, entry["number"]] = entry["worst_case_usd"] or 0.0
                else:
                    self._spent_usd += entry["worst_case_usd"] or 0.0

    def find(self, request: TeacherRequest) -> TeacherAnswer | None:
        """The stored answer to exactly this request, from the newest attempt that has one."""
        for attempt in sorted(self._answers.get(request.number, ()), reverse=True):
            answer = self._read(request.number, attempt)
            if answer.digest == request.digest:
                return answer
        return None

    def reserve(self, requests: Sequence[TeacherRequest], **more: Any) -> None:
        """Put the batch's reservation, with `more` beside it; after this the requests may be sent.

        Raises:
            BudgetExceeded: the batch could cross the limit; nothing was reserved.
            Superseded: a newer attempt exists; nothing may be sent, even if the reservation was put.
        """
        prices = {request.number: worst_case_usd(request, self._teacher) for request in requests}
        self._check_budget(sum(price or 0.0 for price in prices.values()), unknown=None in prices.values())
        self._fence.check()
        key = self.next_key
        self._batches += 1
        entries = [{"number": number, "worst_case_usd": price} for number, price in prices.items()]
        self._store.put_once(key, {"requests": entries, **more})
        # A process that was stopped during the put finishes it when it goes on; nothing may be sent on its strength.
        self._fence.check()
        self._open.update({(self._attempt, number): price or 0.0 for number, price in prices.items()})

    def split_reserved(self, requests: Sequence[TeacherRequest]) -> tuple[list[TeacherRequest], list[TeacherRequest]]:
        """Tell the requests that this attempt has reserved, and are not answered, from those that it has not."""
        reserved = [request for request in requests if (self._attempt, request.number) in self._open]
        return reserved, [request for request in requests if (self._attempt, request.number) not in self._open]

    @property
    def next_key(self) -> str:
        """The key that the next reservation will have."""
        return batch_key(self._attempt, self._batches + 1)

    def room(self) -> Room:
        """How much could be reserved now; what is under way frees most of its reservation when it settles."""
        limit = self._limit()
        return Room(self._teacher, None if limit is None else limit.usd - self._committed_usd)

    def settle(self, answer: TeacherAnswer, attempt: int | None = None) -> None:
        """Replace a reservation by what the stored answer cost; `attempt`: whose it was, if not this one's."""
        attempt = self._attempt if attempt is None else attempt
        self._answers.setdefault(answer.number, []).append(attempt)
        if self._open.pop((attempt, answer.number), None) is not None:
            self._spent_usd += answer.at_most_usd or 0.0  # None: the price is unknown, and so is `spent_usd`

    @property
    def spent_usd(self) -> float | None:
        """Dollars spent over all attempts, open reservations at their worst case; None while the price is unknown."""
        if self._teacher.price_per_million_input_usd is None or self._teacher.price_per_million_output_usd is None:
            return None
        return self._committed_usd

    @property
    def _committed_usd(self) -> float:
        return self._spent_usd + sum(self._open.values())

    def _check_budget(self, batch_usd: float, *, unknown: bool) -> None:
        limit = self._limit()
        if limit is None:
            return
        if unknown:
            raise BudgetExceeded(
                f"{limit.words}, but the price of {self._teacher.model} is unknown, so the limit cannot be kept. Set "
                "data.teacher.price_per_million_input_usd and _output_usd."
            )
        committed = self._committed_usd
        if batch_usd and committed + batch_usd > limit.usd:
            raise BudgetExceeded(
                f"The teacher's budget is used up: {committed:.4f} USD spent or reserved, the next requests could cost "
                f"{batch_usd:.4f}, {limit.words}. {limit.advice}"
            )

    def _read(self, request: int, attempt: int) -> TeacherAnswer:
        return TeacherAnswer.from_json(self._store.get_record(answer_key(request, attempt), advice=ADVICE)["answer"])


class Room:
    """What a budget still holds, for requests that are collected into one batch."""

    def __init__(self, teacher: TeacherSpec, left_usd: float | None) -> None:
        """Take the dollars left; None for no limit."""
        self._teacher, self._left_usd = teacher, left_usd

    def take(self, request: TeacherRequest) -> bool:
        """Whether one more request fits; if so, what it may cost is taken off."""
        if self._left_usd is None:
            return True
        price = worst_case_usd(request, self._teacher)
        if price is None or (price and price > self._left_usd):
            return False
        self._left_usd -= price
        return True


def store_answer(store: Store, attempt: int, answer: TeacherAnswer) -> None:
    """Store a paid answer before anything is made of it."""
    store.put_once(answer_key(answer.number, attempt), {"answer": answer.to_json()})


def count_asked(store: Store) -> Asked:
    """Count over all attempts what was asked."""
    numbers = [entry["number"] for _, _, body in _batches(store) for entry in body["requests"]]
    return Asked(sent=len(numbers), different=len(set(numbers)))


def _batches(store: Store) -> list[tuple[str, int, Mapping[str, list[dict[str, Any]]]]]:
    found = [(key, int(match[1])) for key in store.list("ledger/") if (match := _BATCH.fullmatch(key))]
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        bodies = pool.map(lambda place: store.get_record(place[0], advice=ADVICE), found)
        return [(key, attempt, body) for (key, attempt), body in zip(found, bodies, strict=True)]
