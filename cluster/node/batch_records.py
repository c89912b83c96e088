"""What is stored about batches at the provider, so that none is lost or paid twice however an attempt ends.

    ledger/attempt-000001/batch-000004.json           the reservation; its field "round" holds round 1 with its marker
    ledger/attempt-000001/batch-000004.round-2.json   what round 1 left unanswered, with a marker of its own; put once
    ledger/attempt-000001/batch-000004.sent-1.json    the id that the provider gave round 1; put once, right after
    ledger/attempt-000001/batch-000004.done.json      every request of it has a stored answer

A round is put before its file is sent. The marker is in the batch's metadata at the provider, so that a batch made by
an attempt that was killed before `sent` was put is found there. A round without `sent` of an earlier attempt is looked
for once; if it is not there, it never will be (BatchClient.settle), and the next round asks the same.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alpaca_jobs.generation.batch_lines import Round, first_round
from alpaca_jobs.generation.teacher_request import TeacherRequest
from checkpoints.errors import AlreadyExists
from checkpoints.store import Store
from cluster.node.ledger import ADVICE, Ledger

_RECORD = re.compile(r"(ledger/attempt-(\d{6})/batch-\d{6})(?:\.(round|sent)-(\d+)|\.(done))?\.json")


@dataclass
class BatchRecord:
    """One reservation that is asked for in batches, as the store tells it.

    Attributes:
        stem: its key without `.json`; `attempt` reserved it, and answers are stored as that attempt's.
        round, number: the newest round and its number, from 1.
        sent: ids at the provider, by round.
    """

    stem: str
    attempt: int
    round: Round
    number: int = 1
    sent: Mapping[int, str] | None = None

    @property
    def key(self) -> str:
        """The reservation's key."""
        return f"{self.stem}.json"

    @property
    def batch_id(self) -> str | None:
        """The provider's id of the newest round, if it is known."""
        return (self.sent or {}).get(self.number)


def reserve_batch(ledger: Ledger, run_id: str, attempt: int, requests: list[TeacherRequest]) -> BatchRecord:
    """Reserve requests and put down, in the same record, the batch that will ask them.

    Raises:
        BudgetExceeded, Superseded: as the ledger says; nothing may be sent.
    """
    stem = ledger.next_key.removesuffix(".json")
    record = BatchRecord(stem, attempt, first_round(_marker(run_id, stem, 1), requests))
    ledger.reserve(requests, round=record.round.to_json())
    return record


class BatchRecords:
    """The records of one run."""

    def __init__(self, store: Store, run_id: str) -> None:
        """Take the run's folder of the store."""
        self._store, self._run_id = store, run_id

    def load_open(self) -> list[BatchRecord]:
        """Read every batch whose requests do not all have an answer yet, the oldest first."""
        names: dict[str, list[tuple[str, int, str]]] = {}
        for key in self._store.list("ledger/"):
            if match := _RECORD.fullmatch(key):
                names.setdefault(match[1], []).append((match[3] or match[5] or "", int(match[4] or 0), key))
        found = []
        for stem, records in sorted(names.items()):
            if any(kind == "done" for kind, _, _ in records):
                continue
            number, key = max((number, key) for kind, number, key in records if kind in ("", "round"))
            body = self._read(key).get("round")
            if body is None:
                continue  # a reservation of requests that were asked directly
            sent = {number: str(self._read(key)["batch_id"]) for kind, number, key in records if kind == "sent"}
            attempt = int(stem.split("-")[1].split("/")[0])
            found.append(BatchRecord(stem, attempt, Round.from_json(body), max(1, number), sent))
        return found

    def put_sent(self, record: BatchRecord, batch_id: str) -> None:
        """Put down the id of the newest round."""
        self._put(f"{record.stem}.sent-{record.number}.json", {"batch_id": batch_id})
        record.sent = {**(record.sent or {}), record.number: batch_id}

    def put_round(self, record: BatchRecord, round_: Round) -> None:
        """Put down a next round, with a new marker; `round_`'s own is not looked at.

        Raises:
            AlreadyExists: another attempt put it; this one has been superseded.
        """
        number = record.number + 1
        round_ = Round(_marker(self._run_id, record.stem, number), round_.items, round_.unsupported)
        self._store.put_once(f"{record.stem}.round-{number}.json", {"round": round_.to_json()})
        record.round, record.number = round_, number

    def put_done(self, record: BatchRecord) -> None:
        """Put down that all is answered."""
        self._put(f"{record.stem}.done.json", {"rounds": record.number})

    def _put(self, key: str, body: Mapping[str, Any]) -> None:
        with contextlib.suppress(AlreadyExists):  # the same fact, put down by an attempt before us
            self._store.put_once(key, body)

    def _read(self, key: str) -> Mapping[str, Any]:
        return self._store.get_record(key, advice=ADVICE)


def _marker(run_id: str, stem: str, number: int) -> str:
    return f"{run_id}/{stem.removeprefix('ledger/')}/{number}"
