"""One numbered request to a teacher and its answer, as plain values that are stored, replayed and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One numbered request (numbers from 1).

    `digest` is the sha256, in hex, of all that changes the answer; `schema` the JSON schema it shall have, if any.
    """

    number: int
    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    digest: str
    schema: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TeacherRequest:
        """Return the request that `to_json` wrote."""
        known = {item.name: body[item.name] for item in fields(cls) if item.name in body}
        return cls(**{**known, "stop": tuple(body["stop"])})


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """What the teacher answered to request `number`.

    Attributes:
        finish_reason: "stop", "length" (cut at the token limit), "content_filter" (refused; the text is empty), ...
        prompt_tokens, completion_tokens: billed for this request, unusable answers before this one included; None if
            the server does not say.
        cost_usd: those tokens at the job's prices; None if tokens or a price are unknown.
        retries: how often the request was asked again before this answer.
        at_most_usd: as cost_usd, every try whose tokens are unknown at its worst case; None if a price is unknown.
    """

    number: int
    digest: str
    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    retries: int
    at_most_usd: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> TeacherAnswer:
        """Return the answer that `to_json` wrote; other fields (a store's nonce) are left out."""
        return cls(**{item.name: body[item.name] for item in fields(cls) if item.name in body})
