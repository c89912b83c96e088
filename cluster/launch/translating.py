"""Translating a file of rows by a teacher, on this machine: asked, paid, stored and gone on with as generation is.

    <state>/job.json                   what is translated, put once: a folder serves one translation
    <state>/attempts/...               one claim per start of the command; the newest is the one that may ask
    <state>/ledger/..., answers/...    as in a run (cluster/node/ledger.py)

Every request is reserved at its worst case before it is sent and every answer stored before it is read, so that a
command that was killed, started again, asks again only what was under way and writes the same file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_jobs.data import translate
from alpaca_jobs.data.record_files import Record
from alpaca_jobs.data.translate import Unit
from alpaca_jobs.errors import BudgetExceeded, DataError, TeacherGarbage
from alpaca_jobs.generation.completer import Completer, TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL
from alpaca_jobs.generation.pricing import asked_directly, cost_usd
from alpaca_jobs.generation.tries import TOO_LONG, PromptTooLong
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import TeacherSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists
from checkpoints.fence import Fence
from checkpoints.store import Store
from cluster.events import utc_now
from cluster.node.in_flight import Fixed, in_flight_of
from cluster.node.ledger import Ledger, store_answer
from cluster.node.limits import TeacherLimit
from cluster.node.offline_server import teacher_endpoint

TOKENS_PER_BYTE = 0.27
"""For the price shown before, a prior: English prose has a token every 3.7 bytes or so in today's vocabularies."""
OUTPUT_FACTOR = 1.6
"""Tokens of a translation per token of its English source, for that price: a prior between Portuguese and Japanese."""
_BEGIN_ANEW = "Move its folder away and translate again: what it was answered is asked, and paid for, again."
_RAISE = "Start it again with a higher --max-usd: what was answered is kept, and not asked again."
MAX_BARREN_ANSWERS = 200
"""Answers without a single one of use before the teacher is given up: each is paid for, three for every text."""
_REPORT_EVERY_S = 0.5
_LIKE_ACTORS = 2  # as many as a job has if it says nothing


@dataclass(frozen=True)
class Dropped:
    """A row that has no translation after all tries: its place from 0, where it stands, why, and the row itself."""

    place: int
    where: str
    reason: str
    fields: dict[str, Any]


@dataclass
class Progress:
    """How far a translation is.

    Attributes:
        units, done: requests' worth of text, and how many of those are translated or dropped.
        asked, found: answers paid for by this start of the command, and by earlier ones.
        again: answers that were no use and were asked for again, by reason.
        spent_usd: by all starts, tries of unknown cost at their worst case; None while the price is unknown.
    """

    units: int
    done: int = 0
    asked: int = 0
    found: int = 0
    again: Counter[str] = field(default_factory=Counter)
    spent_usd: float | None = None


@dataclass(frozen=True)
class Translated:
    """Rows in their old order without those that were dropped, and what became of the others."""

    rows: list[dict[str, Any]]
    dropped: list[Dropped]
    progress: Progress


def expected_usd(units: Sequence[Unit], teacher: TeacherSpec, *, language: str) -> float | None:
    """About what a translation costs if every first answer is good; None while the price is unknown."""
    requests = [translate.make_request(unit, 1, language=language, teacher=teacher) for unit in units]
    source = sum(len(text.encode()) for unit in units for text in unit.texts)
    prompts = sum(len(request.prompt.encode()) for request in requests)
    return cost_usd(teacher, round(prompts * TOKENS_PER_BYTE), round(source * TOKENS_PER_BYTE * OUTPUT_FACTOR))


def translate_records(
    records: Sequence[Record],
    *,
    language: str,
    source: str,
    teacher: TeacherSpec | str,
    state: Path,
    max_usd: float | None,
    concurrency: int | None,
    on_progress: Callable[[Progress], None],
) -> Translated:
    """Translate records; call again after a kill with the same arguments to go on.

    Args:
        language, source: ISO 639-1 codes of what is wanted and of what the records are in.
        teacher: whom to ask, or "offline".
        state: folder for what was asked and answered; made if missing.
        max_usd: hard limit for all starts of the command together, or None.
        concurrency: requests at a time; None for as many as bring more answers.

    Raises:
        DataError: records of no known shape, or a folder of another translation.
        BudgetExceeded: what is left could cost more than `max_usd` allows; what was answered is kept.
        TeacherError: the teacher does not answer, or not one of MAX_BARREN_ANSWERS answers is a translation.
        Superseded: the same translation was started again elsewhere.
    """
    units = translate.make_units(records)
    state.mkdir(parents=True, exist_ok=True)
    store = Store.open(str(state.absolute()))
    _check_same(store, records, [language, source, teacher if isinstance(teacher, str) else teacher.model], state)
    log = AttemptLog(store, LAYOUT)
    attempt = log.newest() + 1
    log.claim(attempt, {"started_at": utc_now(), "pid": os.getpid()})
    with teacher_endpoint(teacher, state) as given:
        endpoint = asked_directly(given)
        limit = None if max_usd is None else TeacherLimit(max_usd, f"--max-usd is {max_usd:g}", _RAISE)
        ledger = Ledger(store, attempt=attempt, fence=Fence(log, attempt), teacher=endpoint, limit=lambda: limit)
        ledger.load()
        asking = _Asking(units, store, attempt, ledger, endpoint, language, source, concurrency, on_progress)
        asyncio.run(asking.run())
    return _finish(records, asking)


class _Asking:
    """The units of one start of the command on their way through the teacher; one event loop."""

    def __init__(
        self, units: Sequence[Unit], store: Store, attempt: int, ledger: Ledger, teacher: TeacherSpec, language: str,
        source: str, concurrency: int | None, on_progress: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        self.units = units
        self.made: dict[int, tuple[str, ...]] = {}
        self.failed: dict[int, str] = {}
        self.progress = Progress(len(units), spent_usd=ledger.spent_usd)
        self._store, self._attempt, self._ledger, self._teacher = store, attempt, ledger, teacher
        self._language, self._source = language, source
        self._in_flight = in_flight_of(_LIKE_ACTORS, "auto") if concurrency is None else Fixed(concurrency)
        self._is_demo = teacher.model == OFFLINE_MODEL
        self._waiting: deque[tuple[int, int, str | None]] = deque((place, 1, None) for place in range(len(units)))
        self._flying: dict[asyncio.Task[TeacherAnswer], tuple[int, int, float]] = {}  # place, number, when sent
        self._useless: Counter[str] = Counter()  # answers, by reason
        self._on_progress, self._told_at = on_progress, 0.0

    async def run(self) -> None:
        key = os.environ.get(self._teacher.api_key_env) if self._teacher.api_key_env else None
        completer = Completer(self._teacher, api_key=key)
        try:
            while self._waiting or self._flying:
                self._send(completer)
                if self._flying:
                    under_way = len(self._flying)
                    done, _ = await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)
                    sent_at = [self._flying[task][2] for task in done]
                    self._in_flight.tell(time.monotonic(), sent_at, under_way=under_way)
                    for task in done:
                        place, number, _ = self._flying.pop(task)
                        self.progress.asked += 1
                        answer = task.result()
                        self._ledger.settle(answer)
                        self._take(place, number, answer)
                self._tell()
        except Exception:
            # One request failed for good: the others are waited for, so that what they cost is stored.
            await asyncio.gather(*self._flying, return_exceptions=True)
            raise
        finally:
            await completer.close()
        self._tell(at_once=True)

    def _send(self, completer: Completer) -> None:
        """Fill the free places; stored answers are taken as they are, the rest is reserved as one batch and sent."""
        capacity = self._in_flight.capacity
        free = capacity - len(self._flying)
        if self._flying and free < max(1, capacity // 4):
            return
        room = self._ledger.room()
        batch: list[TeacherRequest] = []
        places: list[tuple[int, int]] = []
        while self._waiting and len(batch) < free:
            place, number, after = self._waiting[0]
            request = self._request(place, number, after)
            if (stored := self._ledger.find(request)) is not None:
                self._waiting.popleft()
                self.progress.found += 1
                self._take(place, number, stored)
                continue
            if not room.take(request):
                if not batch and not self._flying:
                    self._ledger.reserve([request])  # says in words what is missing
                    raise BudgetExceeded("the budget is used up")  # a reservation that fits after all: not reached
                break
            self._waiting.popleft()
            batch.append(request)
            places.append((place, number))
        if batch:
            self._ledger.reserve(batch)
            for request, where in zip(batch, places, strict=True):
                self._flying[asyncio.create_task(self._ask(completer, request))] = (*where, time.monotonic())

    async def _ask(self, completer: Completer, request: TeacherRequest) -> TeacherAnswer:
        try:
            answer = await completer.complete(request)
        except (TeacherGarbage, PromptTooLong) as exc:
            # Other rows may be shorter: one that does not fit is a drop, like one that stays garbage.
            if not isinstance(exc.answer, TeacherAnswer):
                raise
            answer = exc.answer
        await asyncio.to_thread(store_answer, self._store, self._attempt, answer)
        return answer

    def _request(self, place: int, number: int, after: str | None) -> TeacherRequest:
        position = (number - 1) * len(self.units) + place + 1
        return translate.make_request(
            self.units[place], position, language=self._language, teacher=self._teacher, after=after, tries=number
        )

    def _take(self, place: int, number: int, answer: TeacherAnswer) -> None:
        """Read an answer: keep it, ask again, or give the unit up.

        Raises:
            TeacherGarbage: none of many answers was of use; nothing more is asked.
        """
        verdict = translate.judge(
            self.units[place], answer, language=self._language, source=self._source, is_demo=self._is_demo
        )
        if verdict.reason is None:
            self.made[place] = verdict.texts
        else:
            self._useless[verdict.reason] += 1
            if not self.made and self._useless.total() >= MAX_BARREN_ANSWERS:
                raise TeacherGarbage(self._hopeless(answer))
            if number < translate.MAX_TRIES and verdict.reason != TOO_LONG:
                self.progress.again[verdict.reason] += 1
                self._waiting.append((place, number + 1, verdict.reason))
            else:
                self.failed[place] = verdict.reason
        self.progress.done = len(self.made) + len(self.failed)

    def _hopeless(self, answer: TeacherAnswer) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self._useless.most_common())
        count = self._useless.total()
        return (
            f"None of the first {count:,} answers of {self._teacher.model} is a translation ({reasons}); "
            f"the last one begins with {answer.text[:200]!r}. Nothing more is asked. Try another teacher, into another "
            "OUT, and a few rows first."
        )

    def _tell(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._told_at > _REPORT_EVERY_S:
            self._told_at = time.monotonic()
            self.progress.spent_usd = self._ledger.spent_usd
            self._on_progress(self.progress)


def _finish(records: Sequence[Record], asking: _Asking) -> Translated:
    """Put the rows together, in their old order; a row is dropped if any part of it is."""
    texts: dict[int, dict[translate.Path, str]] = {}
    reasons: dict[int, str] = {}
    for place, unit in enumerate(asking.units):
        if place in asking.failed:
            reasons.setdefault(unit.record, asking.failed[place])
        else:
            texts.setdefault(unit.record, {}).update(zip(unit.paths, asking.made[place], strict=True))
    rows = [
        translate.translated(record, texts.get(place, {}))
        for place, record in enumerate(records)
        if place not in reasons
    ]
    dropped = [
        Dropped(place, records[place].where, reason, dict(records[place].fields))
        for place, reason in sorted(reasons.items())
    ]
    return Translated(rows, dropped, asking.progress)


def _check_same(store: Store, records: Sequence[Record], about: Sequence[str], state: Path) -> None:
    """One folder serves one translation: answers are found by their number, which is a place in the file."""
    digest = hashlib.sha256(json.dumps([*about, *(record.fields for record in records)], default=str).encode())
    body = {"digest": digest.hexdigest()}
    try:
        store.put_once("job.json", body)
    except AlreadyExists:
        if store.get_record("job.json", advice=_BEGIN_ANEW).get("digest") != body["digest"]:
            raise DataError(
                f"{state} holds the answers of another translation (other rows, language or model). Name another OUT, "
                "or move that folder away."
            ) from None
