"""The built-in teacher behind token buckets for requests and tokens, with latency and, where said, faults."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from typing import Any

from alpaca_jobs.generation.offline_teacher import OfflineTeacher

INPUT_USD, OUTPUT_USD = 0.15, 0.60  # per million tokens: gpt-4o-mini's list price
WARM_UP_S = 5.0
BURST_S = 1.0  # of unused allowance that is let in at once


class Bucket:
    """So many units a minute, a second's worth at once; a debt is never taken on."""

    def __init__(self, per_minute: float, name: str) -> None:
        self.per_minute, self.rate, self._name = per_minute, per_minute / 60, name
        self._level, self._seen_at = self.rate * BURST_S, time.monotonic()

    def holds(self, now: float, units: float) -> bool:
        """Whether so many may be taken now."""
        self._level = min(self.rate * BURST_S, self._level + self.rate * max(0.0, now - self._seen_at))
        self._seen_at = max(self._seen_at, now)
        return self._level >= units

    def take(self, units: float) -> None:
        """Take so many."""
        self._level -= units

    def headers(self) -> dict[str, str]:
        """As OpenAI states it: the limit, what is left, and how long until it is full again."""
        prefix = "x-ratelimit-{}-" + self._name
        left, until_full_s = max(self._level, 0.0), (self.rate * BURST_S - self._level) / self.rate
        values = {"limit": f"{self.per_minute:g}", "remaining": f"{left:.0f}", "reset": f"{until_full_s * 1000:.0f}ms"}
        return {prefix.format(name): value for name, value in values.items()}


class LimitedTeacher(OfflineTeacher):
    """Refuses what is above its limits, spoils a share of the rest, and writes down what it lets in and bills."""

    stated_limit: dict[str, str] = {}  # noqa: RUF012 (replaced, never changed)

    def __init__(
        self,
        *,
        latency_s: float,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        states_limits: bool = True,
        fault_share: float = 0.0,
    ) -> None:
        super().__init__(latency_s=latency_s, refuses_some=False)
        self._requests = None if requests_per_minute is None else Bucket(requests_per_minute, "requests")
        self._tokens = None if tokens_per_minute is None else Bucket(tokens_per_minute, "tokens")
        self._states_limits, self._fault_share = states_limits, fault_share
        self._times_asked: dict[str, int] = {}
        self._guard = threading.Lock()
        self.accepted: list[tuple[float, float]] = []  # when, and how many tokens
        self.num_limited = self.num_faults = 0
        self.billed_usd = 0.0

    def answer(self, body: dict[str, Any], *, is_chat: bool) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Refuse above the limits, spoil some, answer the rest; a request counts when it is let in."""
        now = time.monotonic() - self.latency_s  # the handler held it back before it asked us
        status, reply, more = super().answer(body, is_chat=is_chat)
        used = reply.get("usage") or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        key = json.dumps(body, sort_keys=True)
        wanted = [(self._requests, 1.0), (self._tokens, float(used["total_tokens"]))]
        buckets = [(bucket, units) for bucket, units in wanted if bucket is not None]
        headers: dict[str, str] = {}
        with self._guard:
            is_let_in = all([bucket.holds(now, units) for bucket, units in buckets])
            for bucket, units in buckets:
                bucket.take(units if is_let_in else 0.0)
                headers |= bucket.headers() if self._states_limits else {}
            number = self._times_asked[key] = self._times_asked.get(key, 0) + is_let_in
            if not is_let_in:
                self.num_limited += 1
                return 429, {"error": {"message": "Rate limit reached.", "code": "rate_limit_exceeded"}}, headers
            self.accepted.append((now, float(used["total_tokens"])))
        dice = int.from_bytes(hashlib.sha256(f"{number}{key}".encode()).digest()[:4], "big") / 2**32
        if status == 200 and dice < self._fault_share:
            self.num_faults += 1
            kind = int(dice / self._fault_share * 3)
            if kind < 2:  # not billed
                words = {"error": {"message": "spoiled on purpose", "code": ("overloaded", "server_error")[kind]}}
                return (429, 500)[kind], words, {**headers, "retry-after": "0.2"}
            reply["choices"][0]["text"] = None  # garbage, and billed
        if status == 200:
            with self._guard:
                self.billed_usd += (used["prompt_tokens"] * INPUT_USD + used["completion_tokens"] * OUTPUT_USD) / 1e6
        return status, reply, {**headers, **more}

    def share_used(self) -> float:
        """What was let in over what was allowed, from the end of the warm-up to the last request."""
        accepted = sorted(self.accepted)
        window = [one for one in accepted if one[0] > accepted[0][0] + WARM_UP_S]
        seconds = window[-1][0] - window[0][0]
        shares = []
        if self._requests is not None:
            shares.append((len(window) - 1) / (self._requests.rate * seconds))
        if self._tokens is not None:
            shares.append(sum(tokens for _, tokens in window[1:]) / (self._tokens.rate * seconds))
        return max(shares)
