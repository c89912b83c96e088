"""What runs in a generation actor: ask the teacher, store the paid answer, return it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from alpaca_jobs.generation.completer import Completer, TeacherAnswer, TeacherRequest
from alpaca_jobs.spec import TeacherSpec
from checkpoints.store import Store
from cluster.ledger import store_answer


class TeacherActor:
    """One process that keeps several requests in flight; Ray runs it as an asynchronous actor.

    Args:
        teacher: whom to ask; the key is read from this process's environment by the name it gives.
        store_uri, run_id, attempt: where answers are stored, and on whose behalf.
    """

    def __init__(self, teacher: dict[str, Any], store_uri: str, run_id: str, attempt: int) -> None:
        spec = TeacherSpec.model_validate(teacher)
        key = os.environ.get(spec.api_key_env) if spec.api_key_env else None
        self._completer = Completer(spec, api_key=key)
        self._store = Store.open(store_uri).child(run_id)
        self._attempt = attempt

    async def ask(self, request: TeacherRequest) -> TeacherAnswer:
        """Return the stored answer to one request.

        Raises:
            TeacherError: after the completer's own bounded retries.
            StoreError: the answer could not be stored; it is lost, and asked again by the next attempt.
        """
        answer = await self._completer.complete(request)
        await asyncio.to_thread(store_answer, self._store, self._attempt, answer)
        return answer
