"""What a batch of requests is made of, and what its output means: pure functions between requests and JSON lines.

A round is one file of requests and the one batch that is made of it. What a round leaves unanswered (refused, expired,
garbage) is the next round, so that every request is asked as often as when asked directly, and no more often.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alpaca_jobs.errors import TeacherError, TeacherGarbage, TeacherUnreachable
from alpaca_jobs.generation.teacher_reply import NOTHING, Reply, Unusable, Usage, read_complaint, read_reply
from alpaca_jobs.generation.teacher_request import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.tries import ContextExceeded, Fault, Tries
from alpaca_jobs.spec import TeacherSpec

BATCHES_AT_ONCE = 4
"""Batches under way at a time, so that the next ones are made while the first are answered."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One request on its way through rounds.

    Attributes:
        max_tokens: the completion allowed now, after it was found to be too long.
        retries: how often it was asked before this round.
        billed: what tries before this round used.
    """

    request: TeacherRequest
    max_tokens: int
    retries: int = 0
    billed: tuple[Usage, ...] = ()


@dataclass(frozen=True, slots=True)
class Round:
    """The requests of one batch.

    Attributes:
        marker: what the batch is found by at the provider; never used twice.
        unsupported: parameters that the server does not take, as found out before.
    """

    marker: str
    items: tuple[BatchItem, ...]
    unsupported: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the round as JSON fields."""
        items = [
            {
                "request": item.request.to_json(), "max_tokens": item.max_tokens, "retries": item.retries,
                "billed": [[used.prompt_tokens, used.completion_tokens] for used in item.billed],
            }
            for item in self.items
        ]  # fmt: skip
        return {"marker": self.marker, "items": items, "unsupported": list(self.unsupported)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Round:
        """Return the round that `to_json` wrote."""
        items = [
            BatchItem(
                TeacherRequest.from_json(one["request"]), one["max_tokens"], one["retries"],
                tuple(Usage(*used) for used in one["billed"]),
            )
            for one in body["items"]
        ]  # fmt: skip
        return cls(body["marker"], tuple(items), tuple(body["unsupported"]))


@dataclass(frozen=True)
class RoundEnd:
    """What a round came to.

    Attributes:
        answers: of the requests that are settled, in the round's order.
        left: those that are to be asked again.
        error: of the first request that may not be asked again in this attempt; a resume begins anew with it.
        must_wait: whether the server wants a pause before the next round.
    """

    answers: tuple[TeacherAnswer, ...]
    left: tuple[BatchItem, ...]
    error: TeacherError | None = None
    must_wait: bool = False


def first_round(marker: str, requests: Sequence[TeacherRequest]) -> Round:
    """Return the round that asks requests for the first time."""
    return Round(marker, tuple(BatchItem(request, request.max_tokens) for request in requests))


def endpoint_of(teacher: TeacherSpec) -> str:
    """Return the path that a batch's requests go to."""
    return "/v1/chat/completions" if teacher.api == "chat" else "/v1/completions"


def render_round(round_: Round, tries: Tries) -> bytes:
    """Return the file of a round: one JSON line for each request, found again by its number."""
    url = endpoint_of(tries.teacher)
    lines = [
        {
            "custom_id": _name(item.request.number), "method": "POST", "url": url,
            "body": tries.arguments(item.request, item.max_tokens),
        }
        for item in round_.items
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def read_round(round_: Round, lines: Iterable[Mapping[str, Any]], tries: Tries) -> RoundEnd:
    """Settle the requests of a round by the lines of its output and error files, in any order.

    A request that no line names was not worked on, and is asked again.
    """
    found = {str(line.get("custom_id")): line for line in lines}
    answers: list[TeacherAnswer] = []
    left: list[BatchItem] = []
    error: TeacherError | None = None
    must_wait = False
    for item in round_.items:
        try:
            reply = _read_line(found.get(_name(item.request.number)), item.request, tries, round_.unsupported)
            answers.append(tries.answer(item.request, reply, [*item.billed, reply.usage], item.retries))
        except ContextExceeded as exc:
            try:
                shorter = tries.shrink(item.max_tokens, item.request.number, str(exc))
            except TeacherError as final:
                error, shorter = error or final, item.request.max_tokens
            left.append(replace(item, max_tokens=shorter))
        except Fault as fault:
            billed = item.billed if fault.usage == NOTHING else (*item.billed, fault.usage)
            must_wait = must_wait or (fault.retry_after_s != 0.0 and fault.error is not TeacherGarbage)
            try:
                tries.check_retry(fault, item.retries, len(billed), item.request.number)
                left.append(replace(item, retries=item.retries + 1, billed=billed))
            except TeacherGarbage as given_up:
                answers.append(tries.given_up(item.request, given_up, billed, item.retries))
            except TeacherError as final:
                error = error or final
                left.append(replace(item, retries=0, billed=billed))
    return RoundEnd(tuple(answers), tuple(left), error, must_wait)


def parse_lines(data: bytes) -> list[Mapping[str, Any]]:
    """Return the JSON objects of a file's lines; what is none is left out, and so its request is asked again."""
    found: list[Mapping[str, Any]] = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _name(number: int) -> str:
    return f"request-{number}"


def _read_line(line: Mapping[str, Any] | None, request: TeacherRequest, tries: Tries, left_out: Sequence[str]) -> Reply:
    """Return the answer in a line; raises Fault or ContextExceeded."""
    if line is None:
        raise Fault(TeacherUnreachable, "the batch ended without it", is_temporary=True)
    response, error = line.get("response"), line.get("error")
    if isinstance(response, Mapping) and isinstance(status := response.get("status_code"), int):
        body = response.get("body")
        if status != 200:
            return tries.read_refusal(status, read_complaint(body), {}, left_out=left_out, request=request)
        try:
            return read_reply(json.dumps(body).encode(), is_chat=tries.teacher.api == "chat")
        except Unusable as exc:
            words = tries.scrub(str(exc))
            raise Fault(TeacherGarbage, words, is_temporary=True, usage=exc.usage) from None
    complaint = read_complaint(error)
    words = tries.scrub(f"{complaint.code or 'no answer'} {complaint.message}".strip())
    raise Fault(TeacherUnreachable, words, is_temporary=True)  # batch_expired, batch_cancelled: not billed
