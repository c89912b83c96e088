"""Asks the teacher: one numbered request in, one answer out, over any OpenAI-compatible server. The LLM seam.

    completer = Completer(teacher, api_key=os.environ["OPENAI_API_KEY"])
    answer = await completer.complete(pipeline.request(1))
    await completer.close()

openai's own retries are off: ours are bounded, counted, jittered, and never ask earlier than the server said.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import reduce
from typing import Any
from urllib.parse import urlsplit

from alpaca_jobs.errors import TeacherAuth, TeacherError, TeacherGarbage, TeacherRateLimited, TeacherUnreachable
from alpaca_jobs.generation.pricing import cost_usd, num_billable_tries, worst_try_usd
from alpaca_jobs.generation.rate_limit import Gate, RateGate, RateNews
from alpaca_jobs.generation.teacher_reply import (
    CONTENT_FILTER,
    NOTHING,
    Complaint,
    Reply,
    Unusable,
    Usage,
    read_complaint,
    read_rate_limits,
    read_reply,
    read_retry_after,
)
from alpaca_jobs.spec import TeacherSpec

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
MAX_RETRY_AFTER_S = 300.0
"""A server that wants a longer pause is not waited for here; the caller decides."""
SHRINK = 0.8
"""What is left of the allowed completion when prompt and completion do not fit. Source: Stanford Alpaca, utils.py."""
UNUSABLE = "unusable"
"""Finish reason of a request whose every try gave garbage."""
END_OF_TEXT_BIAS = {"50256": -100}
"""Keeps a completions model from ending early with <|endoftext|>. Source: Stanford Alpaca, generate_instruction.py."""
_DISPENSABLE = ("logit_bias", "stop", "response_format")
"""An answer without the first two is the same rows or more; the prompt says what the third says."""


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


@dataclass(eq=False)
class _Fault(Exception):
    """One failed try: the error it ends in if it stays, whether asking again can help, and what it cost."""

    error: type[TeacherError]
    words: str
    is_temporary: bool
    retry_after_s: float | None = None
    usage: Usage = NOTHING


class Completer:
    """One teacher. Safe for many requests at a time on one event loop, and still usable after an error."""

    def __init__(
        self,
        teacher: TeacherSpec,
        *,
        api_key: str | None,
        gate: Gate | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Connect to nothing yet.

        Args:
            teacher: where and how to ask.
            api_key: the key itself; None for a server that asks for none. It appears in no message.
            gate: what every try waits at, shared with others who use the same key; None for one of its own.
            sleep, jitter: the clock and the dice (0 to 1), for tests.

        Raises:
            TeacherError: the openai package is not installed.
        """
        self._teacher = teacher
        self._api_key = api_key = (api_key or "").strip() or None
        # Told by `complete`, not here: a Ray actor whose constructor fails dies without its error arriving anywhere.
        self._is_key_possible = api_key is None or (api_key.isascii() and api_key.isprintable() and " " not in api_key)
        self._sleep, self._jitter = sleep, jitter
        self._gate = gate or RateGate()
        self._unsupported: set[str] = set()
        self._where = f"teacher {teacher.model} at {_address(teacher)}"
        self._client = _make_client(teacher, api_key if self._is_key_possible else None)

    async def complete(self, request: TeacherRequest) -> TeacherAnswer:
        """Ask until there is an answer, at most `max_retries` times more than once.

        Tries that may have been billed are fewer where asking costs money (`max_billed_retries`), so that
        (1 + max_billed_retries) worst cases bound what one request can cost.

        Raises:
            TeacherAuth: the key was refused (401, 403), or its account has no credit left; at once.
            TeacherRateLimited: 429 to the last, or with a longer Retry-After than MAX_RETRY_AFTER_S.
            TeacherUnreachable: no connection, no answer in time, or 5xx, to the last.
            TeacherGarbage: answers that are none, to the last; its `answer` says what they cost.
            TeacherError: anything else the server refuses (unknown model, prompt alone too long); at once.
        """
        self._check_key()
        max_tokens, retries = request.max_tokens, 0
        billed: list[Usage] = []
        while True:
            try:
                reply = await self._ask(request, max_tokens)
            except _ContextExceeded as exc:
                max_tokens = self._shrink(max_tokens, request.number, str(exc))
            except _Fault as fault:
                if fault.usage != NOTHING:
                    billed.append(fault.usage)
                try:
                    self._raise_if_final(fault, retries, len(billed), request.number)
                except TeacherGarbage as exc:
                    nothing = Reply(str(exc), UNUSABLE, NOTHING)
                    raise TeacherGarbage(str(exc), answer=self._answer(request, nothing, billed, retries)) from None
                await self._sleep(self._delay(retries, fault.retry_after_s))
                retries += 1
            else:
                return self._answer(request, reply, [*billed, reply.usage], retries)

    async def close(self) -> None:
        """Close the connections; the completer cannot be used afterwards."""
        await self._client.close()

    def _answer(self, request: TeacherRequest, reply: Reply, billed: Sequence[Usage], retries: int) -> TeacherAnswer:
        spent = reduce(_add, billed)
        worst = worst_try_usd(self._teacher, request.prompt, request.max_tokens)
        costs = [cost_usd(self._teacher, usage.prompt_tokens, usage.completion_tokens) for usage in billed]
        return TeacherAnswer(
            number=request.number,
            digest=request.digest,
            text=reply.text,
            finish_reason=reply.finish_reason,
            prompt_tokens=spent.prompt_tokens,
            completion_tokens=spent.completion_tokens,
            cost_usd=cost_usd(self._teacher, spent.prompt_tokens, spent.completion_tokens),
            retries=retries,
            at_most_usd=None if worst is None else sum(worst if cost is None else cost for cost in costs),
        )

    def _check_key(self) -> None:
        if not self._is_key_possible:
            # The HTTP library would refuse such a header too, but its message repeats the key.
            raise TeacherAuth(
                f"The key in {self._teacher.api_key_env} holds a space, a line break or another character that no key "
                "has. It is not repeated here. Copy the key again, without quotes around it."
            )

    def _shrink(self, max_tokens: int, number: int, said: str) -> int:
        """Return a shorter completion to allow after the server refused this one as too long."""
        shorter = int(max_tokens * SHRINK)
        if shorter < 1:
            raise TeacherError(
                f"{self._where}: the prompt of request {number} alone does not fit the model ({said}). Use shorter "
                "seed tasks, fewer of them (data.num_prompt_seeds), or a model with a longer context."
            ) from None
        return shorter

    async def _ask(self, request: TeacherRequest, max_tokens: int) -> Reply:
        """Send one HTTP request; raises _Fault or _ContextExceeded."""
        import openai

        is_chat = self._teacher.api == "chat"
        endpoint = self._client.chat.completions if is_chat else self._client.completions
        await self._gate.enter()
        try:
            async with asyncio.timeout(self._teacher.timeout_s):
                raw = await endpoint.with_raw_response.create(**self._arguments(request, max_tokens))
            reply = read_reply(raw.content, is_chat=is_chat)
            await self._gate.tell(RateNews(False, read_rate_limits(raw.headers), reply.usage.total))
            return reply
        except openai.APIStatusError as exc:
            await self._gate.tell(
                RateNews(
                    exc.status_code == 429,
                    read_rate_limits(exc.response.headers),
                    retry_after_s=read_retry_after(exc.response.headers, now_s=time.time()),
                )
            )
            return self._read_refusal(exc.status_code, read_complaint(exc.body), exc.response.headers)
        except openai.APIConnectionError as exc:
            never_sent = type(exc.__cause__).__name__ == "ConnectError"  # httpx or httpx2, whichever openai brought
            words = f"{'no connection' if never_sent else 'connection lost'} ({exc.__cause__ or exc})"
            # What was sent may have been answered, and billed, all the same: its cost is unknown, not nothing.
            usage = NOTHING if never_sent else Usage()
            raise _Fault(TeacherUnreachable, self._scrub(words), is_temporary=True, usage=usage) from None
        except TimeoutError:
            words = f"no answer within {self._teacher.timeout_s:g} s"
            raise _Fault(TeacherUnreachable, words, is_temporary=True, usage=Usage()) from None
        except Unusable as exc:
            raise _Fault(TeacherGarbage, self._scrub(str(exc)), is_temporary=True, usage=exc.usage) from None

    def _arguments(self, request: TeacherRequest, max_tokens: int) -> dict[str, Any]:
        is_chat = self._teacher.api == "chat"
        arguments: dict[str, Any] = {
            "model": self._teacher.model,
            "temperature": request.temperature,
            "top_p": request.top_p,
            **({"stop": list(request.stop)} if request.stop else {}),
        }
        if is_chat:
            arguments["messages"] = [{"role": "user", "content": request.prompt}]
            if request.schema is not None:
                form = {"name": "answer", "strict": True, "schema": request.schema}
                arguments["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            arguments["prompt"] = request.prompt
            arguments["logit_bias"] = END_OF_TEXT_BIAS  # a chat model numbers its tokens otherwise
        # OpenAI's reasoning models take the limit under another name only, and say so with a 400.
        arguments["max_completion_tokens" if "max_tokens" in self._unsupported else "max_tokens"] = max_tokens
        return {name: value for name, value in arguments.items() if name not in self._unsupported}

    def _read_refusal(self, status: int, complaint: Complaint, headers: Mapping[str, str]) -> Reply:
        """Turn an error response into a refusal answer, a fault, or another try with fewer parameters."""
        if complaint.is_content_filter:
            return Reply("", CONTENT_FILTER, NOTHING)
        if status in (400, 413, 422) and complaint.is_context_exceeded:
            raise _ContextExceeded(self._scrub(complaint.message))
        said = f"HTTP {status}" + (f": {self._scrub(complaint.message)}" if complaint.message else "")
        if status in (400, 422) and self._can_do_without(complaint.unsupported):
            self._unsupported.add(complaint.unsupported)
            raise _Fault(TeacherError, said, is_temporary=True, retry_after_s=0.0)
        if status in (401, 403):
            # The server's own words may repeat the key, so they are left out.
            raise _Fault(TeacherAuth, f"HTTP {status}, the key was refused", is_temporary=False)
        if status == 429 and complaint.is_quota_used_up:
            raise _Fault(TeacherAuth, "HTTP 429, the key's account has no credit left", is_temporary=False)
        wait_s = read_retry_after(headers, now_s=time.time())
        if status == 429:
            raise _Fault(TeacherRateLimited, "HTTP 429, too many requests", is_temporary=True, retry_after_s=wait_s)
        if status in (408, 409) or status >= 500:
            raise _Fault(TeacherUnreachable, said, is_temporary=True, retry_after_s=wait_s)
        raise _Fault(TeacherError, said, is_temporary=False)

    def _can_do_without(self, name: str) -> bool:
        return name not in self._unsupported and (name == "max_tokens" or name in _DISPENSABLE)

    def _raise_if_final(self, fault: _Fault, retries: int, num_billed: int, number: int) -> None:
        """Raise the error in words unless the request may be asked again.

        `num_billed`: tries so far that may have been billed; one more may be, so there must be room for it.
        """
        is_affordable = num_billed < num_billable_tries(self._teacher)
        too_long = fault.retry_after_s is not None and fault.retry_after_s > MAX_RETRY_AFTER_S
        if fault.is_temporary and retries < self._teacher.max_retries and is_affordable and not too_long:
            logger.info("%s, request %d: %s; asking again (%d)", self._where, number, fault.words, retries + 1)
            return
        tries = f" after {retries + 1} tries" if retries else ""
        text = f"{self._where}, request {number}{tries}: {fault.words}. {self._advice(fault.error)}"
        if fault.error is TeacherRateLimited:
            raise TeacherRateLimited(text, retry_after_s=fault.retry_after_s) from None
        raise fault.error(text) from None

    def _advice(self, error: type[TeacherError]) -> str:
        name = self._teacher.api_key_env
        if error is TeacherAuth:
            return f"Check the key in {name}." if name else "The server wants a key: set teacher.api_key_env."
        if error is TeacherRateLimited:
            return "Resume later, lower data.concurrency or data.num_actors, or raise teacher.max_retries."
        if error is TeacherUnreachable:
            return "Check teacher.base_url and that the server runs; then resume."
        if error is TeacherGarbage:
            return f"An OpenAI-compatible {self._teacher.api} answer is wanted: check teacher.base_url and teacher.api."
        return "Check teacher.model, teacher.api and teacher.base_url."

    def _delay(self, retries: int, retry_after_s: float | None) -> float:
        """Return the seconds to the next try: what the server asked for and a little more, or a doubling pause."""
        if retry_after_s is not None:
            return retry_after_s * (1 + 0.25 * self._jitter())
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**retries) * (0.5 + 0.5 * self._jitter())

    def _scrub(self, text: str) -> str:
        return text.replace(self._api_key, "***") if self._api_key else text


class _ContextExceeded(Exception):
    """Prompt and allowed completion do not fit the model together."""


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


def _make_client(teacher: TeacherSpec, api_key: str | None) -> Any:
    try:
        import openai
    except ImportError as exc:
        raise TeacherError("asking a teacher needs the openai package: pip install 'alpaca-jobs[data]'") from exc
    # Without a key openai would take OPENAI_API_KEY from the environment and show it to a server that asked for none.
    return openai.AsyncOpenAI(
        api_key=api_key or "none",
        base_url=teacher.base_url,
        max_retries=0,
        timeout=None,  # `_ask` limits the whole answer; this one would only limit the pause between two reads
        # A proxy from the environment cannot reach a server on this machine.
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if teacher.is_local else None,
    )
