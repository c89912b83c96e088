"""Numbered requests as every recipe makes them: what is asked, and a digest of all that changes the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from alpaca_jobs.errors import DataError
from alpaca_jobs.generation.completer import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.offline_spec import offline_teacher_spec
from alpaca_jobs.spec import DataSpec, TeacherSpec

T = TypeVar("T")


class RequestMaker:
    """Makes the requests of one job."""

    def __init__(self, data: DataSpec) -> None:
        """Take the data spec; `data.teacher` must be set (DataError)."""
        self._data = data
        self.teacher = _resolve_teacher(data)

    @property
    def wants_json(self) -> bool:
        """Whether answers are to be JSON."""
        return self.teacher.answer_format == "json"

    def make(
        self,
        number: int,
        prompt: str,
        *,
        stop: tuple[str, ...] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> TeacherRequest:
        """Return request `number`.

        Args:
            max_tokens: at most; the teacher's own limit holds in any case.
            temperature: instead of the teacher's.
            schema: JSON schema of the answer, used where answers are to be JSON.
        """
        teacher = self.teacher
        limit = teacher.max_tokens if max_tokens is None else min(max_tokens, teacher.max_tokens)
        heat = teacher.temperature if temperature is None else temperature
        decisive: dict[str, Any] = {
            "api": teacher.api,
            "base_url": None if isinstance(self._data.teacher, str) else teacher.base_url,  # its port is never the same
            "max_tokens": limit,
            "model": teacher.model,
            "prompt": prompt,
            "stop": stop,
            "temperature": heat,
            "top_p": teacher.top_p,
        }
        asked = schema if self.wants_json else None
        if asked is not None:
            decisive["schema"] = asked
        return TeacherRequest(
            number=number,
            prompt=prompt,
            max_tokens=limit,
            temperature=heat,
            top_p=teacher.top_p,
            stop=stop,
            digest=hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest(),
            schema=asked,
        )


def check_answer(answer: TeacherAnswer, request: TeacherRequest) -> None:
    """Refuse an answer that was given to another request.

    Raises:
        DataError: the digests differ.
    """
    if answer.digest != request.digest:
        raise DataError(
            f"the stored answer {answer.number} belongs to another request (digest {answer.digest[:12]}): the data "
            "part of the job or the seed tasks changed since it was asked. Start a new run, or change them back."
        )


def sample(items: Sequence[T], count: int, *, seed: int, number: int) -> list[T]:
    """Draw `count` different items in random order; hashes, because random.sample may change between Pythons."""
    order = list(range(len(items)))
    for place in range(min(count, len(order))):
        drawn = hashlib.sha256(f"{seed}/{number}/{place}".encode()).digest()
        other = place + int.from_bytes(drawn[:8], "big") % (len(order) - place)
        order[place], order[other] = order[other], order[place]
    return [items[place] for place in order[:count]]


def _resolve_teacher(data: DataSpec) -> TeacherSpec:
    if data.teacher is None:
        raise DataError("data.teacher is not set, so no rows can be generated. Set it, or use the rows of data.from.")
    return offline_teacher_spec(word=data.teacher) if isinstance(data.teacher, str) else data.teacher
