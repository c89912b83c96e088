"""One kind of request to a teacher, counted and sized, as estimates show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AskedStage:
    """Requests of one kind.

    Attributes:
        name: for people, in the plural.
        requests: how many.
        prompt_tokens, answer_tokens: of one request, on average.
        words: how the number comes about.
    """

    name: str
    requests: int
    prompt_tokens: float
    answer_tokens: float
    words: str

    @property
    def all_prompt_tokens(self) -> float:
        """Of all its requests together."""
        return self.requests * self.prompt_tokens

    @property
    def all_answer_tokens(self) -> float:
        """Of all its requests together."""
        return self.requests * self.answer_tokens
