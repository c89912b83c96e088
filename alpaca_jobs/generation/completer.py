"""Asks the teacher: one numbered request in, one answer out, over any OpenAI-compatible server. The LLM seam.

    completer = Completer(teacher, api_key=os.environ["OPENAI_API_KEY"])
    answer = await completer.complete(pipeline.request(1))
    await completer.close()

openai's own retries are off: ours are bounded, counted, jittered, and never ask earlier than the server said. A teacher
that is away or refuses for now is waited for (`teacher.patience_s`), and everybody who uses the key waits with it.
teacher_request.py's two values are used under this module's name; tries.py holds the rules.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from alpaca_jobs.errors import TeacherAuth, TeacherError, TeacherGarbage, TeacherRateLimited, TeacherUnreachable
from alpaca_jobs.generation.rate_limit import Gate, RateGate, RateNews
from alpaca_jobs.generation.teacher_reply import (
    NOTHING,
    Reply,
    Unusable,
    Usage,
    read_complaint,
    read_has_room,
    read_rate_limits,
    read_reply,
    read_retry_after,
)
from alpaca_jobs.generation.teacher_request import TeacherAnswer, TeacherRequest
from alpaca_jobs.generation.tries import UNUSABLE, ContextExceeded, Fault, PromptTooLong, Tries
from alpaca_jobs.spec import TeacherSpec

__all__ = ["UNUSABLE", "Completer", "TeacherAnswer", "TeacherRequest"]

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect to nothing yet.

        Args:
            teacher: where and how to ask.
            api_key: the key itself; None for a server that asks for none. It appears in no message.
            gate: what every try waits at, shared with others who use the same key; None for one of its own.
            sleep, clock, jitter: the time and the dice (0 to 1), for tests.

        Raises:
            TeacherError: the openai package is not installed.
        """
        self._teacher = teacher
        self._key = TeacherKey(teacher, api_key)
        self._sleep, self._jitter, self._clock = sleep, jitter, clock
        self._num_answered, self._answered_at = 0, -math.inf
        self._absence: Absence | None = None
        self._gate = gate or RateGate()
        self._tries = Tries(teacher, self._key.value)
        self._client = make_client(teacher, self._key)

    @property
    def absence(self) -> Absence | None:
        """Since when the teacher has answered nobody here but with refusals for now; None while it answers."""
        return self._absence

    async def complete(self, request: TeacherRequest) -> TeacherAnswer:
        """Ask until there is an answer, at most `max_retries` times more than once.

        Tries that may have been billed are fewer where asking costs money (`max_billed_retries`), so that
        (1 + max_billed_retries) worst cases bound what one request can cost. With `patience_s`, a refusal for now (429,
        5xx) and a missing connection, which cost nothing, are waited for so long instead, and not counted.

        Raises:
            TeacherAuth: the key was refused (401, 403), or its account has no credit left; at once.
            TeacherRateLimited, TeacherUnreachable: nobody was answered for `patience_s`; without patience: to the last
                try, or with a longer Retry-After than MAX_RETRY_AFTER_S.
            TeacherGarbage: answers that are none, or none in time, to the last try; or this request alone is refused
                for `patience_s`. Its `answer` says what that cost.
            PromptTooLong: the prompt alone does not fit the model. Its `answer` says what that cost.
            TeacherError: anything else the server refuses (unknown model); at once.
        """
        self._key.check()
        max_tokens, retries, waits = request.max_tokens, 0, 0
        billed: list[Usage] = []
        since: tuple[float, int] | None = None  # when it was refused first, and how many others were answered then
        answered = 0  # how many were at its last refusal
        while True:
            try:
                reply = await self._ask(request, max_tokens)
            except ContextExceeded as exc:
                try:
                    max_tokens = self._tries.shrink(max_tokens, request.number, str(exc))
                except PromptTooLong as too_long:
                    too_long.answer = self._tries.given_up(request, too_long, billed, retries + waits)
                    raise
            except Fault as fault:
                if fault.usage != NOTHING:
                    billed.append(fault.usage)
                try:
                    if self._teacher.patience_s and fault.is_away:
                        since = since or (self._clock(), self._num_answered)
                        is_silent = not waits or self._num_answered == answered
                        answered = self._num_answered
                        await self._wait_for_it(fault, waits, since, request.number, is_silent=is_silent)
                        waits += 1
                        continue
                    self._tries.check_retry(fault, retries, len(billed), request.number)
                except TeacherError as exc:
                    if not isinstance(exc, TeacherGarbage) and (not self._teacher.patience_s or fault.usage == NOTHING):
                        raise
                    answer = self._tries.given_up(request, exc, billed, retries + waits)
                    raise TeacherGarbage(str(exc), answer=answer) from None
                since = None
                await self._sleep(self._delay(retries, fault.retry_after_s))
                retries += 1
            else:
                self._num_answered, self._answered_at = self._num_answered + 1, self._clock()
                self._absence = None
                return self._tries.answer(request, reply, [*billed, reply.usage], retries + waits)

    async def _wait_for_it(
        self, fault: Fault, waits: int, since: tuple[float, int], number: int, *, is_silent: bool
    ) -> None:
        """Wait before a request is asked again that was refused for now, for the `waits` + 1st time in a row.

        Args:
            since: when it was refused first, and how many others were answered then.
            is_silent: nobody was answered since it was refused the last time. What was under way when a teacher went
                may be answered a while after others were refused, and says nothing of now.

        Raises:
            TeacherRateLimited, TeacherUnreachable: nobody was answered for as long as our patience lasts.
            TeacherGarbage: others were, but this one never was.
        """
        now = self._clock()
        pause_s, patience_s = self._delay(min(waits, 16), fault.retry_after_s), self._teacher.patience_s
        others_are_answered = self._num_answered > since[1]
        if now + pause_s - since[0] > patience_s and not (others_are_answered and fault.error is TeacherRateLimited):
            words = f"request {number}, asked {waits + 1} times in {now - since[0]:.0f} s: {fault.words}"
            self._tries.fail(replace(fault, error=TeacherGarbage) if others_are_answered else fault, words)
        if is_silent:
            began_s = time.time() - (now - max(since[0], self._answered_at))
            self._absence = _longer(self._absence, Absence(began_s, fault.words, time.time() + pause_s))
            if waits:  # once may be chance; now it is not asked for others either
                await self._gate.tell(RateNews(False, pause_s=pause_s))
        await self._sleep(pause_s)

    async def close(self) -> None:
        """Close the connections; the completer cannot be used afterwards."""
        await self._client.close()

    async def _ask(self, request: TeacherRequest, max_tokens: int) -> Reply:
        """Send one HTTP request; raises Fault or ContextExceeded."""
        import openai

        is_chat = self._teacher.api == "chat"
        endpoint = self._client.chat.completions if is_chat else self._client.completions
        await self._gate.enter()
        left_out = frozenset(self._tries.unsupported)
        try:
            async with asyncio.timeout(self._teacher.timeout_s):
                raw = await endpoint.with_raw_response.create(**self._tries.arguments(request, max_tokens))
            reply = read_reply(raw.content, is_chat=is_chat)
            await self._gate.tell(RateNews(False, read_rate_limits(raw.headers), reply.usage.total))
            return reply
        except openai.APIStatusError as exc:
            await self._gate.tell(
                RateNews(
                    exc.status_code == 429 and not read_has_room(exc.response.headers),
                    read_rate_limits(exc.response.headers),
                    retry_after_s=read_retry_after(exc.response.headers, now_s=time.time()),
                )
            )
            complaint = read_complaint(exc.body)
            return self._tries.read_refusal(
                exc.status_code, complaint, exc.response.headers, left_out=left_out, request=request
            )
        except openai.APIConnectionError as exc:
            never_sent = type(exc.__cause__).__name__ == "ConnectError"  # httpx or httpx2, whichever openai brought
            words = f"{'no connection' if never_sent else 'connection lost'} ({exc.__cause__ or exc})"
            # What was sent may have been answered, and billed, all the same: its cost is unknown, not nothing.
            usage = NOTHING if never_sent else Usage()
            raise Fault(TeacherUnreachable, self._tries.scrub(words), is_temporary=True, usage=usage) from None
        except TimeoutError:
            words = f"no answer within {self._teacher.timeout_s:g} s"
            raise Fault(TeacherUnreachable, words, is_temporary=True, usage=Usage()) from None
        except Unusable as exc:
            raise Fault(TeacherGarbage, self._tries.scrub(str(exc)), is_temporary=True, usage=exc.usage) from None

    def _delay(self, retries: int, retry_after_s: float | None) -> float:
        """Return the seconds to the next try: what the server asked for and a little more, or a doubling pause."""
        if retry_after_s is not None:
            return retry_after_s * (1 + 0.25 * self._jitter())
        return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0**retries) * (0.5 + 0.5 * self._jitter())


async def list_models(teacher: TeacherSpec, api_key: str | None, *, limit_s: float) -> list[str]:
    """Return the names of the models that a teacher says it has, in order; nothing is billed, and it is asked once.

    Raises:
        TeacherError: it does not say, in words without the key.
    """
    client = make_client(teacher, TeacherKey(teacher, api_key))
    import openai

    try:
        async with asyncio.timeout(limit_s):
            return sorted([str(model.id) async for model in client.models.list()])
    except openai.APIStatusError as exc:
        raise TeacherError(f"HTTP {exc.status_code}") from None  # the server's own words may repeat the key
    except TimeoutError:
        raise TeacherUnreachable(f"no answer within {limit_s:g} s") from None
    except (openai.OpenAIError, ValueError, AttributeError) as exc:  # the last two: an answer that is no list of models
        raise TeacherError(f"{type(exc).__name__}: {exc.__cause__ or ''}".removesuffix(": ")) from None
    finally:
        await client.close()


@dataclass(frozen=True, slots=True)
class Absence:
    """A teacher that answers nobody, times in seconds since 1970.

    Attributes:
        since_s: when it refused first.
        words: what it said, or what happened instead, at the newest try.
        next_try_s: when it is asked again.
    """

    since_s: float
    words: str
    next_try_s: float


def _longer(before: Absence | None, now: Absence) -> Absence:
    """An absence that goes on: who waits longest has everybody wait."""
    if before is None:
        return now
    return Absence(before.since_s, now.words, max(before.next_try_s, now.next_try_s))


class TeacherKey:
    """A teacher's key, and whether it can be one; it appears in no message."""

    def __init__(self, teacher: TeacherSpec, api_key: str | None) -> None:
        """Take the key as the environment has it."""
        self.value = (api_key or "").strip() or None
        self._name = teacher.api_key_env
        # Told by `check`, not here: a Ray actor whose constructor fails dies without its error arriving anywhere.
        self.is_possible = self.value is None or (
            self.value.isascii() and self.value.isprintable() and " " not in self.value
        )

    def check(self) -> None:
        """Refuse what no key looks like.

        Raises:
            TeacherAuth: in words, without the key.
        """
        if not self.is_possible:
            # The HTTP library would refuse such a header too, but its message repeats the key.
            raise TeacherAuth(
                f"The key in {self._name} holds a space, a line break or another character that no key "
                "has. It is not repeated here. Copy the key again, without quotes around it."
            )


def make_client(teacher: TeacherSpec, key: TeacherKey) -> Any:
    """Return openai's asynchronous client for a teacher, its own retries and time limits off.

    Raises:
        TeacherError: the openai package is not installed.
    """
    try:
        import openai
    except ImportError as exc:
        raise TeacherError("asking a teacher needs the openai package: pip install 'alpaca-jobs[data]'") from exc
    # Without a key openai would take OPENAI_API_KEY from the environment and show it to a server that asked for none.
    return openai.AsyncOpenAI(
        api_key=(key.value if key.is_possible else None) or "none",
        base_url=teacher.base_url,
        max_retries=0,
        timeout=None,  # callers limit the whole answer; this one would only limit the pause between two reads
        # A proxy from the environment cannot reach a server on this machine.
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if teacher.is_local else None,
    )
