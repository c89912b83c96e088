"""Reads what came back from an OpenAI-compatible server: pure functions on bytes, headers and error bodies."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from alpaca_jobs.data.record_files import whole_characters
from alpaca_jobs.generation.rate_limit import RateLimits

CONTENT_FILTER = "content_filter"
CUT = "length"
"""Finish reason of a text whose end is missing, whatever the server calls it."""

_CUT_REASONS = ("model_length", "error", "insufficient_system_resource", "abort")
"""The context was full, or the server gave up half-way. Sources: the API references of Mistral (the first two) and
DeepSeek (the third); vLLM, RequestStatus (the last)."""

_CONTEXT_WORDS = (  # OpenAI today, OpenAI's older models, vLLM, llama.cpp
    "maximum context length",
    "reduce your prompt",
    "reduce the length",
    "max_tokens is too large",
    "exceeds the available context size",
)
_REFUSED_CODES = (CONTENT_FILTER, "content_policy_violation", "data_inspection_failed")  # Azure, gateways, Qwen
_REFUSED_WORDS = (  # DeepSeek, OpenAI's reasoning models, OpenRouter, Qwen behind a gateway
    "content exists risk",
    "flagged as potentially violating",
    "input was flagged",
    "may contain inappropriate content",
)
_NOT_TAKEN = re.compile(
    r"(?:unsupported (?:parameter|value)s?:?|(?:does not|doesn't|don't) support(?: the)?(?: parameters?:?)?"
    r"|argument not supported on this model:|unrecognized request argument supplied:)\s*\[?['\"`]?(\w+)",
    re.IGNORECASE,
)
"""A parameter that is not taken, in the words of Azure, LiteLLM, xAI and OpenAI's older models, which give no code."""
_ONE_OF_TWO = "cannot both be specified"  # Claude behind Bedrock, LiteLLM or OpenRouter, of temperature and top_p
_SCHEMA_WORDS = ("response format", "json schema", "structured output", "guided json", "guided decoding")
"""The parameter's name and its type's; what OpenAI and vLLM call it in words."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens the server says it used; None where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def total(self) -> int | None:
        """Both together; None if either is unknown."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


NOTHING = Usage(0, 0)


@dataclass(frozen=True, slots=True)
class Reply:
    """A usable answer: its text, why it ended ("stop", "length", "content_filter", ...), its usage."""

    text: str
    finish_reason: str
    usage: Usage


class Unusable(Exception):
    """A 200 whose body is no answer. `usage` is what it cost all the same."""

    def __init__(self, problem: str, usage: Usage = Usage()) -> None:
        super().__init__(problem)
        self.usage = usage


def read_reply(body: bytes, *, is_chat: bool) -> Reply:
    """Return the answer in a response body, without what a chat model thought aloud before it.

    A refusal (finish_reason content_filter, or a chat message with `refusal`) is an answer without text; every name for
    a text that broke off becomes "length".

    Raises:
        Unusable: not JSON, no choices, a text that is null, empty, not a string or thoughts alone.
    """
    try:
        data = json.loads(body)
    except ValueError as exc:
        raise Unusable(_streamed_error(body) or f"not JSON: {body[:80]!r}") from exc
    if not isinstance(data, dict):
        raise Unusable(f"JSON, but not an object: {str(data)[:80]!r}")
    usage = _read_usage(data.get("usage"))
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        fields = f"no choices; its fields are {', '.join(sorted(map(str, data))) or 'none'}"
        raise Unusable(_error_instead(data) or fields, usage)
    choice = choices[0]
    finish_reason = choice.get("finish_reason") or "stop"
    message = choice.get("message") if is_chat else None
    refusal = message.get("refusal") if isinstance(message, dict) else None
    if finish_reason == CONTENT_FILTER or refusal:
        return Reply("", CONTENT_FILTER, usage)
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    said = _after_thoughts(text) if is_chat and isinstance(text, str) else text
    if not isinstance(said, str) or not said.strip():
        where = "choices[0].message.content" if is_chat else "choices[0].text"
        cut = "; if it thinks, raise teacher.max_tokens" if finish_reason == CUT else ""
        raise Unusable(f"{where} is {str(text)[:60]!r}, finish_reason {finish_reason!r}{cut}", usage)
    why = CUT if finish_reason in _CUT_REASONS else str(finish_reason)
    return Reply(whole_characters(said), why, _believed(usage))


def _after_thoughts(text: str) -> str:
    """The answer in a chat model's text; "" if it never came to one.

    A server that is not told how a model marks its thoughts (vLLM without --reasoning-parser) leaves them in front.
    Where a chat template writes the first mark itself, as those of QwQ and DeepSeek-R1 do, the second stands alone.
    """
    thoughts, mark, answer = text.partition("</think>")
    begins = thoughts.lstrip().startswith("<think>")
    if mark and (begins or "<think>" not in thoughts):
        return answer.lstrip()
    return "" if begins else text


def _error_instead(data: Any) -> str:
    """The words of an error that came where an answer should be, as gateways in front of servers send them; or ""."""
    if not isinstance(data, dict) or not data.get("error"):
        return ""
    complaint = read_complaint(data if isinstance(data["error"], dict) else data["error"])
    code = f" (code {complaint.code})" if complaint.code else ""
    return f"an error in place of an answer{code}: {complaint.message or 'without a word'}"


def _streamed_error(body: bytes) -> str:
    """The same in a stream of events, which some servers fall into when something fails; "" where there is none.

    Source: WHATWG HTML, "Server-sent events": a line `data: ...` for each event.
    """
    for line in body.splitlines():
        if line.startswith(b"data:"):
            try:
                event = json.loads(line.removeprefix(b"data:"))
            except ValueError:
                continue
            if words := _error_instead(event):
                return words
    return ""


def _read_usage(value: Any) -> Usage:
    """Return what was used. Tokens that stand in the total alone are a completion's: xAI and Gemini leave those that a
    model thinks with out of `completion_tokens`, and bill them at its price.
    """
    if not isinstance(value, dict):
        return Usage()
    counts = [value.get(key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")]
    prompt, completion, total = (
        count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None for count in counts
    )
    if prompt is not None and total is not None and total - prompt > (completion or 0):
        completion = total - prompt
    return Usage(prompt, completion)


def _believed(usage: Usage) -> Usage:
    """The usage of an answer with a text: no tokens at all is what a server writes that does not count them."""
    return Usage(usage.prompt_tokens or None, usage.completion_tokens or None)


@dataclass(frozen=True, slots=True)
class Complaint:
    """The error object of a response: the server's words, its code and the parameter it names; "" where absent."""

    message: str
    code: str
    param: str

    @property
    def is_context_exceeded(self) -> bool:
        """Prompt and allowed completion together do not fit the model; a shorter completion may."""
        text = self.message.lower()
        return self.code == "context_length_exceeded" or any(words in text for words in _CONTEXT_WORDS)

    @property
    def is_content_filter(self) -> bool:
        """The prompt itself was refused for what it says, and others may not be: by a code, or in words alone."""
        text = self.message.lower()
        return self.code.lower() in _REFUSED_CODES or any(words in text for words in _REFUSED_WORDS)

    @property
    def is_quota_used_up(self) -> bool:
        """A 429 that no waiting cures: the account has no credit left."""
        return self.code == "insufficient_quota"

    @property
    def unsupported(self) -> tuple[str, ...]:
        """Names of parameters this model or server does not take, by its code or in words; the likeliest first."""
        if self.code in ("unsupported_parameter", "unsupported_value") and self.param:
            return (self.param,)
        if _ONE_OF_TWO in self.message and "top_p" in self.message:
            return ("top_p", "temperature")
        named = _NOT_TAKEN.findall(self.message)
        names = [self.param, *named] if named else []
        return (*names, "logit_bias") if "logit_bias" in self.message else tuple(names)

    @property
    def is_about_schemas(self) -> bool:
        """It is the structured output that is not taken: by the parameter's name, or by what servers call it."""
        text = f"{self.param} {self.message}".lower().replace("_", " ").replace("-", " ")
        return any(words in text for words in _SCHEMA_WORDS)


def read_complaint(body: Any) -> Complaint:
    """Return the error object of a response; `body` is parsed JSON (the outer "error" or not), text or None."""
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    if not isinstance(body, Mapping):
        return Complaint(str(body or "")[:300], "", "")
    return Complaint(*(str(body.get(key) or "")[:300] for key in ("message", "code", "param")))


def read_retry_after(headers: Mapping[str, str], *, now_s: float) -> float | None:
    """Return the seconds a server asks to wait, from `retry-after-ms` or `retry-after` (seconds or a date), or None.

    Args:
        headers: case-insensitive response headers.
        now_s: seconds since the epoch, for dates.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or not value:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, TypeError):
        return None


_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DAY_S = 86400.0


def read_rate_limits(headers: Mapping[str, str]) -> RateLimits:
    """Return the limits per minute that `x-ratelimit-limit-*` headers state.

    OpenAI states a daily limit under the same name. The time until it is full again tells them apart: what was used,
    at the rate of a whole window, takes longer than a minute's limit ever could.
    Source: OpenAI, "Rate limits in headers" (limit, remaining and reset of requests and tokens).
    """
    found = []
    for kind in ("requests", "tokens"):
        limit, remaining = _limit_and_rest(headers, kind)
        reset_s = _duration(headers.get(f"x-ratelimit-reset-{kind}"))
        if limit and remaining is not None and reset_s is not None and reset_s > 0 and limit > remaining:
            is_daily = reset_s * limit / (limit - remaining) > _DAY_S / 2
            limit = limit * 60 / _DAY_S if is_daily else limit
        found.append(limit or None)
    return RateLimits(found[0], found[1])


def read_has_room(headers: Mapping[str, str]) -> bool:
    """Say whether the headers state limits of which half or more is left: what is refused then is not refused for them.

    A server that is overloaded answers 429 too, however slowly it is asked.
    Source: OpenAI, "Error codes" (429: "The engine is currently overloaded").
    """
    both = [_limit_and_rest(headers, kind) for kind in ("requests", "tokens")]
    rooms = [remaining >= limit / 2 for limit, remaining in both if limit and remaining is not None]
    return bool(rooms) and all(rooms)


def _limit_and_rest(headers: Mapping[str, str], kind: str) -> tuple[float | None, float | None]:
    """What is allowed in a window, and what is left of it; None where the server does not say."""
    names = (f"x-ratelimit-limit-{kind}", f"x-ratelimit-remaining-{kind}")
    return _number(headers.get(names[0])), _number(headers.get(names[1]))


def _duration(value: str | None) -> float | None:
    """Return the seconds of `6m0s`, `8.64s`, `120ms` or a plain number."""
    parts = _PARTS.findall(value or "")
    return sum(float(count) * _SECONDS[unit] for count, unit in parts) if parts else _number(value)


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value else -1.0
    except ValueError:
        return None
    return number if number >= 0 and math.isfinite(number) else None
