"""The provider's side of batches, over openai's client: send a file, make a batch of it, find, watch, read, cancel.

    client = BatchClient(teacher, api_key=..., tries=tries)
    batch_id = await client.create(marker, lines)     # None: nobody knows whether it was made; then `settle(marker)`
    state = await client.look(batch_id)

Calls that are safe to repeat are repeated here, bounded and with pauses. Making a batch is not: a lost answer to it
may mean a batch that is paid for. `settle` finds that out for good.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from alpaca_jobs.errors import TeacherError, TeacherRateLimited, TeacherUnreachable
from alpaca_jobs.generation.batch_lines import endpoint_of, parse_lines
from alpaca_jobs.generation.completer import FIRST_DELAY_S, MAX_DELAY_S, TeacherKey, make_client
from alpaca_jobs.generation.teacher_reply import NOTHING, Usage, read_complaint
from alpaca_jobs.generation.tries import ContextExceeded, Fault, Tries
from alpaca_jobs.spec import TeacherSpec

MARKER_FIELD = "alpaca_jobs"
"""Name of the batch's metadata that holds our marker."""
FILE_LIMIT_S = 900.0
"""For sending or reading a whole file: OpenAI allows 200 MB."""
_OVER = ("completed", "failed", "expired", "cancelled")
_FULL = ("token_limit_exceeded", "request_limit_exceeded", "rate_limit_exceeded")
_PAGE = 100


@dataclass(frozen=True, slots=True)
class BatchState:
    """How a batch stands.

    Attributes:
        status: the provider's word: validating, in_progress, ..., completed, failed, expired, cancelled.
        input_file, files: ids of the file that it was made of, and of those that hold what came of it.
        problem: why it failed, if it did.
        is_full: it failed only because too much of this account is waiting; trying later helps.
    """

    id: str
    status: str
    input_file: str
    files: tuple[str, ...] = ()
    problem: str = ""
    is_full: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in _OVER


class BatchClient:
    """One teacher's batches. Use on one event loop."""

    def __init__(
        self,
        teacher: TeacherSpec,
        *,
        api_key: str | None,
        tries: Tries,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Connect to nothing yet; `tries` reads refusals as it does for direct requests."""
        self._teacher, self._tries, self._sleep = teacher, tries, sleep
        self._key = TeacherKey(teacher, api_key)
        self._client = make_client(teacher, self._key)

    async def upload(self, marker: str, lines: bytes) -> str:
        """Send a file of requests; returns its id. Costs nothing."""
        name = (_file_name(marker), lines, "application/jsonl")
        made = await self._call(
            "sending a batch's file", lambda: self._client.files.create(file=name, purpose="batch"), FILE_LIMIT_S
        )  # fmt: skip
        return str(made.id)

    async def create(self, marker: str, file_id: str) -> str | None:
        """Make a batch of a file; from here on it costs money.

        Returns:
            Its id; None if the server's answer was lost, so that it may be there all the same.

        Raises:
            TeacherError: it was refused.
        """
        refused, began = 0, time.monotonic()
        while True:
            try:
                made = await self._once(
                    lambda: self._client.batches.create(
                        input_file_id=file_id, endpoint=endpoint_of(self._teacher), completion_window="24h",
                        metadata={MARKER_FIELD: marker},
                    ),
                    self._teacher.timeout_s,
                )  # fmt: skip
                return str(made.id)
            except Fault as fault:
                if fault.error is TeacherUnreachable and fault.usage != NOTHING:
                    return None
                await self._pause_or_fail(fault, refused, "making a batch", began)
                refused += 1

    async def settle(self, marker: str) -> str | None:
        """Return the batch with a marker; None if there is none, and from then on there never will be.

        Its file is deleted in between: whoever still tries to make the batch is refused then.
        """
        if (found := await self._find(marker)) is not None:
            return found
        files = await self._call("looking for a batch's file", lambda: self._all(self._client.files, purpose="batch"))
        for one in files:
            if one.filename == _file_name(marker):
                await self.delete(one.id)
        return await self._find(marker)

    async def look(self, batch_id: str) -> BatchState:
        """Return how a batch stands.

        Raises:
            TeacherError: the server does not know it, or does not answer.
        """
        found = await self._call(f"looking at batch {batch_id}", lambda: self._client.batches.retrieve(batch_id))
        problems = list(found.errors.data or ()) if found.errors is not None else []
        words = "; ".join(f"{one.code or 'error'}: {self._tries.scrub(one.message or '')}" for one in problems[:3])
        files = tuple(one for one in (found.output_file_id, found.error_file_id) if one)
        is_full = bool(problems) and all(one.code in _FULL for one in problems)
        return BatchState(str(found.id), str(found.status), str(found.input_file_id), files, words, is_full)

    async def read(self, state: BatchState) -> list[Mapping[str, Any]]:
        """Return the lines of a batch's output and error files."""
        lines: list[Mapping[str, Any]] = []
        for file_id in state.files:
            raw = await self._call("reading a batch's output", partial(self._content, file_id), FILE_LIMIT_S)
            lines += parse_lines(raw)
        return lines

    async def cancel(self, batch_id: str) -> None:
        """Have a batch end as soon as the provider can; one that is over stays as it is. Tried once."""
        await self._once(lambda: self._client.batches.cancel(batch_id), self._teacher.timeout_s)

    async def delete(self, file_id: str) -> None:
        """Delete a file; one that is gone is no error."""
        try:
            await self._call("deleting a batch's file", lambda: self._client.files.delete(file_id))
        except TeacherError:
            if await self._is_there(file_id):
                raise

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _find(self, marker: str) -> str | None:
        batches = await self._call("looking for a batch", lambda: self._all(self._client.batches))
        mine = [one for one in batches if (one.metadata or {}).get(MARKER_FIELD) == marker]
        return str(min(mine, key=lambda one: one.created_at).id) if mine else None

    async def _all(self, resource: Any, **arguments: Any) -> list[Any]:
        return [one async for one in resource.list(limit=_PAGE, **arguments)]

    async def _content(self, file_id: str) -> bytes:
        return bytes((await self._client.files.content(file_id)).content)

    async def _is_there(self, file_id: str) -> bool:
        files = await self._call("looking for a file", lambda: self._all(self._client.files, purpose="batch"))
        return any(one.id == file_id for one in files)

    async def _call(self, doing: str, ask: Callable[[], Awaitable[Any]], limit_s: float | None = None) -> Any:
        """Ask until there is an answer, as long as the teacher's patience_s and max_retries allow."""
        retries, began = 0, time.monotonic()
        while True:
            try:
                return await self._once(ask, limit_s or self._teacher.timeout_s)
            except Fault as fault:
                await self._pause_or_fail(fault, retries, doing, began)
                retries += 1

    async def _pause_or_fail(self, fault: Fault, retries: int, doing: str, began: float) -> None:
        is_out_of_tries = retries >= self._teacher.max_retries
        if is_out_of_tries and fault.error in (TeacherRateLimited, TeacherUnreachable):
            is_out_of_tries = time.monotonic() - began >= self._teacher.patience_s  # these calls cost nothing
        if not fault.is_temporary or is_out_of_tries:
            self._tries.fail(fault, f"{doing}: {fault.words}")
        wait_s = fault.retry_after_s
        if wait_s is None:
            wait_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(retries, 16)) * random.uniform(0.5, 1.0)
        await self._sleep(wait_s)

    async def _once(self, ask: Callable[[], Awaitable[Any]], limit_s: float) -> Any:
        """Ask once; raises Fault, whose `usage` is unknown where the request may have been carried out."""
        import openai

        self._key.check()
        try:
            async with asyncio.timeout(limit_s):
                return await ask()
        except openai.APIStatusError as exc:
            complaint = read_complaint(exc.body)
            if exc.status_code == 429 and complaint.code in _FULL:
                raise Fault(TeacherRateLimited, f"HTTP 429: {complaint.message}", is_temporary=True) from None
            try:
                self._tries.read_refusal(exc.status_code, complaint, exc.response.headers, left_out=())
            except ContextExceeded as too_long:
                raise Fault(TeacherError, str(too_long), is_temporary=False) from None
            except Fault as fault:
                if exc.status_code >= 500:
                    raise Fault(fault.error, fault.words, True, fault.retry_after_s, Usage()) from None
                raise
            raise Fault(TeacherError, f"HTTP {exc.status_code}: {complaint.message}", is_temporary=False) from None
        except openai.APIConnectionError as exc:
            never_sent = type(exc.__cause__).__name__ == "ConnectError"
            words = self._tries.scrub(
                f"{'no connection' if never_sent else 'connection lost'} ({exc.__cause__ or exc})"
            )
            usage = NOTHING if never_sent else Usage()
            raise Fault(TeacherUnreachable, words, is_temporary=True, usage=usage) from None
        except TimeoutError:
            words = f"no answer within {limit_s:g} s"
            raise Fault(TeacherUnreachable, words, is_temporary=True, usage=Usage()) from None


def _file_name(marker: str) -> str:
    return f"{marker.replace('/', '-')}.jsonl"
