"""What asking a teacher costs: known tokens at the job's prices, and the most that one try can come to. Pure."""

from __future__ import annotations

from alpaca_jobs.spec import TeacherSpec

CHAT_FRAME_TOKENS = 32
"""Tokens a chat server puts around one message. OpenAI's models take 7, Llama 3's template about 30 with its header."""


BATCH_SHARE = 0.5
"""What a batch's tokens cost, as a share of the prices for direct requests. Source: OpenAI, "Batch API" guide."""


def cost_usd(teacher: TeacherSpec, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
    """Return what tokens cost at the job's prices, in dollars; None if a count or a price is unknown."""
    prices = (teacher.price_per_million_input_usd, teacher.price_per_million_output_usd)
    if prices == (0.0, 0.0):
        return 0.0
    if prompt_tokens is None or completion_tokens is None or prices[0] is None or prices[1] is None:
        return None
    share = BATCH_SHARE if teacher.batch_api else 1.0
    return share * (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


def asked_directly(teacher: TeacherSpec) -> TeacherSpec:
    """The teacher for requests that are sent at once, whatever the job says about batches: they cost the full price."""
    return teacher.model_copy(update={"batch_api": False})


def worst_try_usd(teacher: TeacherSpec, prompt: str, max_tokens: int) -> float | None:
    """Return the most dollars that one try can cost, None while a price is unknown.

    A token is at least one byte of UTF-8 in every byte-level vocabulary, so the prompt's bytes bound its tokens.
    """
    return cost_usd(teacher, len(prompt.encode()) + CHAT_FRAME_TOKENS, max_tokens)


def num_billable_tries(teacher: TeacherSpec) -> int:
    """Return how many tries of one request may be billed: all of them count where asking costs nothing."""
    is_free = cost_usd(teacher, None, None) == 0.0
    return 1 + (teacher.max_retries if is_free else min(teacher.max_retries, teacher.max_billed_retries))
