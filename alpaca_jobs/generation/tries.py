"""What one try of a request sends, what its response means, and whether it may be tried again: live or in a batch.

Nothing here talks to a server. completer.py asks one request at a time, batch_client.py many in one file; both read
responses by the same rules, so that a request has the same answer, cost and bounds either way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NoReturn
from urllib.parse import urlsplit

from alpaca_jobs.errors import (
    TeacherAuth,
    TeacherError,
    TeacherGarbage,
    TeacherRateLimited,
    TeacherUnreachable,
    TeacherWithoutSchemas,
)
from alpaca_jobs.generation.pricing import cost_usd, num_billable_tries, worst_try_usd
from alpaca_jobs.generation.teacher_reply import (
    CONTENT_FILTER,
    NOTHING,
    Complaint,
    Reply,
    Usage,
    read_retry_after,
)
from alpaca_jobs.generation.teacher_request import TeacherAnswer, TeacherRequest
from alpaca_jobs.spec import TeacherSpec

logger = logging.getLogger(__name__)

MAX_RETRY_AFTER_S = 300.0
"""Without any patience (teacher.patience_s: 0) a server that wants a longer pause is not waited for."""
SHRINK = 0.8
"""What is left of the allowed completion when prompt and completion do not fit. Source: Stanford Alpaca, utils.py."""
UNUSABLE = "unusable"
"""Finish reason of a request whose every try gave garbage, or no answer in time."""
TOO_LONG = "too_long"
"""Finish reason of a request whose prompt alone does not fit the model."""
END_OF_TEXT_BIAS = {"50256": -100}
"""Keeps a completions model from ending early with <|endoftext|>. Source: Stanford Alpaca, generate_instruction.py."""
_MAY_BE_BILLED = (408, 504, 524)
"""A gateway that waited no longer for the server behind it, which may be answering, and billing, all the same. Sources:
RFC 9110, 15.6.5; Cloudflare, "Error 524"; Microsoft, "Plan to manage costs for Azure OpenAI" (a 408 is charged)."""
_DISPENSABLE = ("logit_bias", "stop")
"""An answer without them is the same rows or more."""


@dataclass(eq=False)
class Fault(Exception):
    """One failed try: the error it ends in if it stays, whether asking again can help, and what it cost."""

    error: type[TeacherError]
    words: str
    is_temporary: bool
    retry_after_s: float | None = None
    usage: Usage = NOTHING

    @property
    def is_away(self) -> bool:
        """Whether nobody was asked at all: a refusal for now or no connection, which cost nothing and passes."""
        return self.is_temporary and self.usage == NOTHING and self.error in (TeacherRateLimited, TeacherUnreachable)


class ContextExceeded(Exception):
    """Prompt and allowed completion do not fit the model together."""


class PromptTooLong(TeacherError):
    """A prompt alone does not fit the model, however short the completion.

    Attributes:
        answer: a TeacherAnswer without rows that says what asking cost; None where nobody has made one.
    """

    answer: TeacherAnswer | None = None


class CreditUsedUp(TeacherAuth):
    """The account that the key belongs to has no credit left; no waiting helps, but a payment does."""


class Tries:
    """The rules for one teacher. Remembers which parameters its server does not take; safe on one event loop."""

    def __init__(self, teacher: TeacherSpec, api_key: str | None, *, unsupported: Iterable[str] = ()) -> None:
        """Take the teacher, the key (only to keep it out of messages), and parameters known not to be taken."""
        self.teacher = teacher
        self.unsupported = set(unsupported)
        self.where = f"teacher {teacher.model} at {_address(teacher)}"
        self._api_key = api_key

    def arguments(self, request: TeacherRequest, max_tokens: int) -> dict[str, Any]:
        """Return the body of one try."""
        teacher = self.teacher
        arguments: dict[str, Any] = {
            "model": teacher.model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            **({"stop": list(request.stop)} if request.stop else {}),
        }
        if teacher.api == "chat":
            arguments["messages"] = [{"role": "user", "content": request.prompt}]
            if request.schema is not None:
                form = {"name": "answer", "strict": True, "schema": request.schema}
                arguments["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            arguments["prompt"] = request.prompt
            arguments["logit_bias"] = END_OF_TEXT_BIAS  # a chat model numbers its tokens otherwise
        # OpenAI's reasoning models take the limit under another name only, and say so with a 400.
        arguments["max_completion_tokens" if "max_tokens" in self.unsupported else "max_tokens"] = max_tokens
        kept = {"temperature", "top_p"} - self._dispensable(request)
        return {name: value for name, value in arguments.items() if name not in self.unsupported or name in kept}

    def _dispensable(self, request: TeacherRequest | None) -> set[str]:
        """The parameters that a request can go without: a recipe's own temperature, of the user's only 1, as of top_p.

        That is what a server takes that is told none. Source: OpenAI's API reference.
        """
        found = {"max_tokens", *_DISPENSABLE}
        if request is not None and (request.temperature == 1 or request.temperature != self.teacher.temperature):
            found.add("temperature")
        if request is not None and request.top_p == 1:
            found.add("top_p")
        return found

    def read_refusal(
        self,
        status: int,
        complaint: Complaint,
        headers: Mapping[str, str],
        *,
        left_out: Collection[str],
        request: TeacherRequest | None = None,
    ) -> Reply:
        """Return the answer that an error response is, if it is one (a content filter's refusal).

        Args:
            left_out: the parameters that this try was sent without; what others found out since then does not count.
            request: what was asked, where it was a request.

        Raises:
            ContextExceeded: a shorter completion may fit.
            Fault: anything else; a parameter that can be done without is done without from now on, a schema cannot.
        """
        if complaint.is_content_filter:
            return Reply("", CONTENT_FILTER, NOTHING)
        if status in (400, 413, 422) and complaint.is_context_exceeded:
            raise ContextExceeded(self.scrub(complaint.message))
        said = f"HTTP {status}" + (f": {self.scrub(complaint.message)}" if complaint.message else "")
        if status in (400, 422) and self.teacher.answer_format == "json" and complaint.is_about_schemas:
            raise Fault(TeacherWithoutSchemas, said, is_temporary=False)
        can_go = self._dispensable(request) - set(left_out)
        name = next((one for one in complaint.unsupported if one in can_go), None)
        if status in (400, 422) and name is not None:
            self.unsupported.add(name)
            raise Fault(TeacherError, said, is_temporary=True, retry_after_s=0.0)
        if status in (401, 403):
            # The server's own words may repeat the key, so they are left out.
            raise Fault(TeacherAuth, f"HTTP {status}, the key was refused", is_temporary=False)
        if status == 402 or (status == 429 and complaint.is_quota_used_up):
            words = f"HTTP {status}, the key's account has no credit left"
            said = f": {self.scrub(complaint.message)}" if complaint.message else ""
            raise Fault(CreditUsedUp, words + said, is_temporary=False)
        wait_s = read_retry_after(headers, now_s=time.time())
        if status == 429:
            raise Fault(TeacherRateLimited, "HTTP 429, too many requests", is_temporary=True, retry_after_s=wait_s)
        if status in (408, 409) or status >= 500:
            usage = Usage() if status in _MAY_BE_BILLED else NOTHING
            raise Fault(TeacherUnreachable, said, is_temporary=True, retry_after_s=wait_s, usage=usage)
        raise Fault(TeacherError, said, is_temporary=False)

    def shrink(self, max_tokens: int, number: int, said: str) -> int:
        """Return a shorter completion to allow after the server refused this one as too long.

        Raises:
            PromptTooLong: the prompt alone is too long.
        """
        shorter = int(max_tokens * SHRINK)
        if shorter < 1:
            raise PromptTooLong(
                f"{self.where}: the prompt of request {number} alone does not fit the model ({said}). Use shorter "
                "seed tasks, fewer of them (data.num_prompt_seeds), or a model with a longer context."
            ) from None
        return shorter

    def answer(self, request: TeacherRequest, reply: Reply, billed: Sequence[Usage], retries: int) -> TeacherAnswer:
        """Return the answer of a request; `billed` is what all its tries used, the one answered included."""
        spent = reduce(_add, billed, NOTHING)
        worst = worst_try_usd(self.teacher, request.prompt, request.max_tokens)
        costs = [cost_usd(self.teacher, usage.prompt_tokens, usage.completion_tokens) for usage in billed]
        return TeacherAnswer(
            number=request.number,
            digest=request.digest,
            text=reply.text,
            finish_reason=reply.finish_reason,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            cost_usd=cost_usd(self.teacher, spent.prompt_tokens, spent.completion_tokens),
            retries=retries,
            at_most_usd=None if worst is None else sum(worst if cost is None else cost for cost in costs),
        )

    def given_up(
        self, request: TeacherRequest, error: TeacherError, billed: Sequence[Usage], retries: int
    ) -> TeacherAnswer:
        """Return the answer that a request counts as whose every try was lost or garbage, or that was too long."""
        reason = TOO_LONG if isinstance(error, PromptTooLong) else UNUSABLE
        return self.answer(request, Reply(str(error), reason, NOTHING), billed, retries)

    def check_retry(self, fault: Fault, retries: int, num_billed: int, number: int) -> None:
        """Return if the request may be asked again.

        Args:
            retries: how often it was already.
            num_billed: tries so far that may have been billed; one more may be, so there must be room for it.

        Raises:
            TeacherError: of the fault's class, in words, if it may not.
        """
        is_affordable = num_billed < num_billable_tries(self.teacher)
        too_long = fault.retry_after_s is not None and fault.retry_after_s > MAX_RETRY_AFTER_S
        if fault.is_temporary and retries < self.teacher.max_retries and is_affordable and not too_long:
            logger.info("%s, request %d: %s; asking again (%d)", self.where, number, fault.words, retries + 1)
            return
        tries = f" after {retries + 1} tries" if retries else ""
        self.fail(fault, f"request {number}{tries}: {fault.words}")

    def fail(self, fault: Fault, words: str) -> NoReturn:
        """Raise a fault's error with words of where it was and with advice."""
        text = f"{self.where}, {words.removesuffix('.')}. {self._advice(fault.error)}"
        if fault.error is TeacherRateLimited:
            raise TeacherRateLimited(text, retry_after_s=fault.retry_after_s) from None
        raise fault.error(text) from None

    def scrub(self, text: str) -> str:
        """Return a server's words without the key."""
        return text.replace(self._api_key, "***") if self._api_key else text

    def _advice(self, error: type[TeacherError]) -> str:
        name = self.teacher.api_key_env
        if error is CreditUsedUp:
            whose = f"the key in {name}" if name else "the teacher"
            return f"Add credit to the account that {whose} belongs to; then resume: what was answered is kept."
        if error is TeacherAuth:
            return f"Check the key in {name}." if name else "The server wants a key: set teacher.api_key_env."
        if error is TeacherRateLimited and self.teacher.batch_api:
            return "Resume later, or lower teacher.batch_requests."
        if error is TeacherRateLimited:
            return "Resume later, lower data.concurrency or data.num_actors, or raise teacher.patience_s."
        if error is TeacherWithoutSchemas:
            return (
                "The job asks for structured output (data.teacher.answer_format: json), which this server or model "
                "does not take. Set data.teacher.answer_format: text, or take another data.teacher.model."
            )
        if error is TeacherUnreachable:
            return "Check teacher.base_url and that the server runs; then resume."
        if error is TeacherGarbage:
            return f"An OpenAI-compatible {self.teacher.api} answer is wanted: check teacher.base_url and teacher.api."
        return "Check teacher.model, teacher.api and teacher.base_url."


def _add(left: Usage, right: Usage) -> Usage:
    """Sum two usages; unknown stays unknown."""
    sums = [
        None if mine is None or other is None else mine + other
        for mine, other in (
            (left.prompt_tokens, right.prompt_tokens),
            (left.completion_tokens, right.completion_tokens),
        )
    ]
    return Usage(sums[0], sums[1])


def _address(teacher: TeacherSpec) -> str:
    parts = urlsplit(teacher.base_url or "https://api.openai.com/v1")
    return f"{parts.scheme}://{parts.netloc}{parts.path}"  # no query: it may hold a key
