"""What runs in the actor of batches: see each through at the provider, store its answers, return them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import replace
from typing import Any

from alpaca_jobs.errors import TeacherError, TeacherRateLimited
from alpaca_jobs.generation.batch_client import BatchClient, BatchState
from alpaca_jobs.generation.batch_lines import Round, RoundEnd, read_round, render_round
from alpaca_jobs.generation.teacher_request import TeacherAnswer
from alpaca_jobs.generation.tries import Fault, Tries
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import TeacherSpec
from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists
from checkpoints.fence import Fence
from checkpoints.store import Store
from cluster.node.batch_records import BatchRecord, BatchRecords
from cluster.node.ledger import store_answer

logger = logging.getLogger(__name__)

POLL_SHARE = 0.1
"""Looks are this share of the batch's age apart, so that no answer waits longer than a tenth of what it took."""
MIN_POLL_S, MAX_POLL_S = 0.25, 60.0
FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 600.0
"""Before a round that the server wanted a pause for: doubling."""
_STORE_THREADS = 16


class BatchActor:
    """One process that keeps batches in flight; Ray runs it as an asynchronous actor.

    Args:
        teacher: whom to ask; the key is read from this process's environment by the name it gives.
        store_uri, run_id, attempt: where answers are stored, and on whose behalf.
    """

    def __init__(self, teacher: dict[str, Any], store_uri: str, run_id: str, attempt: int) -> None:
        """Open the store and the teacher's client."""
        spec = TeacherSpec.model_validate(teacher)
        key = os.environ.get(spec.api_key_env) if spec.api_key_env else None
        self._tries = Tries(spec, (key or "").strip() or None)
        self._client = BatchClient(spec, api_key=key, tries=self._tries)
        self._store = Store.open(store_uri).child(run_id)
        self._records = BatchRecords(self._store, run_id)
        self._fence = Fence(AttemptLog(self._store, LAYOUT), attempt)
        self._attempt = attempt
        self._under_way: set[str] = set()
        self._one_is_over = asyncio.Event()
        self._num_sending = 0
        self._is_ending = False

    async def see_through(self, record: BatchRecord, is_new: bool) -> list[TeacherAnswer]:
        """Return the stored answers to all requests of a batch that have none yet, asking as often as it takes.

        Args:
            is_new: this attempt reserved it just now, so that nothing of it can be at the provider yet.

        Raises:
            TeacherError: some requests may not be asked again; the answers to the others are stored.
            StoreError: an answer could not be stored; its batch is read again by the next attempt.
            Superseded: a newer attempt exists.
        """
        answers: list[TeacherAnswer] = []
        pauses = 0
        while True:
            self._tries.unsupported.update(record.round.unsupported)
            ended, state = await self._run_round(record, is_new=is_new)
            await self._keep(record, ended.answers)
            answers += ended.answers
            if ended.left:
                left = Round("", ended.left, tuple(sorted(self._tries.unsupported)))
                await asyncio.to_thread(self._records.put_round, record, left)
            else:
                await asyncio.to_thread(self._records.put_done, record)
            if state is not None:
                await self._tidy(state)
            if ended.error is not None:
                raise ended.error
            if not ended.left or self._is_ending:
                return answers
            is_new = True  # a round of our own
            if ended.must_wait:
                await asyncio.sleep(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0**pauses))
                pauses += 1

    async def cancel_all(self) -> int:
        """Have the provider end every batch under way, and make no more; returns how many it was told to.

        What is done of them is still paid, and is there when the run is resumed.
        """
        self._is_ending = True
        while self._num_sending:
            await asyncio.sleep(MIN_POLL_S)
        ids = list(self._under_way)
        for found in await asyncio.gather(*map(self._client.cancel, ids), return_exceptions=True):
            if isinstance(found, BaseException):
                logger.warning("a batch could not be cancelled at the provider: %s", getattr(found, "words", found))
        return len(ids)

    async def close(self) -> None:
        """Close the teacher's connections."""
        await self._client.close()

    async def _run_round(self, record: BatchRecord, *, is_new: bool) -> tuple[RoundEnd, BatchState | None]:
        """Send the newest round, or find what an earlier attempt sent of it, and wait for its end."""
        batch_id = record.batch_id
        if batch_id is None:
            batch_id = await (self._send(record) if is_new else self._client.settle(record.round.marker))
            if batch_id is None:  # and it never will be: the same requests under a new marker
                return RoundEnd((), record.round.items), None
            await asyncio.to_thread(self._records.put_sent, record, batch_id)
        state = await self._wait_for(batch_id)
        if state.status == "failed":
            return await self._after_failure(record, state, is_new=is_new), state
        lines = await self._client.read(state)
        return read_round(record.round, lines, self._tries), state

    async def _send(self, record: BatchRecord) -> str | None:
        """Send a round's file and make its batch; None if that came to nothing for good."""
        marker = record.round.marker
        file_id = await self._client.upload(marker, render_round(record.round, self._tries))
        # From here on it costs money; a file that a successor has deleted makes no batch, whatever we believe.
        await asyncio.to_thread(self._fence.check)
        if self._is_ending:
            return None
        self._num_sending += 1
        try:
            batch_id = await self._client.create(marker, file_id)
            batch_id = batch_id if batch_id is not None else await self._client.settle(marker)
            if batch_id is not None:
                self._under_way.add(batch_id)
            return batch_id
        finally:
            self._num_sending -= 1

    async def _wait_for(self, batch_id: str) -> BatchState:
        began = time.monotonic()
        self._under_way.add(batch_id)
        try:
            while not (state := await self._client.look(batch_id)).is_over:
                await asyncio.sleep(min(MAX_POLL_S, max(MIN_POLL_S, POLL_SHARE * (time.monotonic() - began))))
        finally:
            self._under_way.discard(batch_id)
            self._one_is_over.set()
            self._one_is_over = asyncio.Event()
        logger.info("batch %s is %s", batch_id, state.status)
        return state

    async def _after_failure(self, record: BatchRecord, state: BatchState, *, is_new: bool) -> RoundEnd:
        """A batch that the provider would not begin cost nothing. If its queue was full, the same is asked again."""
        items = record.round.items
        if not is_new:  # its file may have been deleted under it, by us; asked anew it shows what is wrong, if anything
            return RoundEnd((), items)
        if state.is_full and self._under_way:  # what fills it may be our own: wait for that, however long it takes
            await self._one_is_over.wait()
            return RoundEnd((), items)
        if state.is_full and items[0].retries < self._tries.teacher.max_retries:
            return RoundEnd((), tuple(replace(item, retries=item.retries + 1) for item in items), must_wait=True)
        kind = TeacherRateLimited if state.is_full else TeacherError
        try:
            self._tries.fail(Fault(kind, state.problem, False), f"batch {state.id} failed: {state.problem}")
        except TeacherError as exc:
            return RoundEnd((), tuple(replace(item, retries=0) for item in items), exc)

    async def _keep(self, record: BatchRecord, answers: tuple[TeacherAnswer, ...]) -> None:
        """Store answers under the attempt that reserved them; one that an earlier attempt stored already stays."""
        await asyncio.to_thread(self._fence.check)
        limit = asyncio.Semaphore(_STORE_THREADS)

        async def keep(answer: TeacherAnswer) -> None:
            async with limit:
                with contextlib.suppress(AlreadyExists):
                    await asyncio.to_thread(store_answer, self._store, record.attempt, answer)

        await asyncio.gather(*map(keep, answers))

    async def _tidy(self, state: BatchState) -> None:
        """Delete a batch's files at the provider; all that was in them is stored."""
        for file_id in (state.input_file, *state.files):
            with contextlib.suppress(TeacherError):  # they are deleted by themselves after some weeks
                await self._client.delete(file_id)
