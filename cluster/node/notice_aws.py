"""AWS: a spot machine's end is announced two minutes before, by the instance metadata service (IMDSv2).

Source: docs.aws.amazon.com/AWSEC2/latest/UserGuide, "Spot Instance interruption notices" (spot/instance-action answers
404 until there is one, then {"action": "terminate" | "stop" | "hibernate", "time": UTC}; AWS advises a look every five
seconds; hibernation begins at once), "EC2 instance rebalance recommendations" (events/recommendations/rebalance:
{"noticeTime": UTC}, may come earlier, or never, and promises nothing), and "Use IMDSv2" (a token by PUT, at most six
hours, sent with every question). 2026-11.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from cluster.node.metadata import Answer, Heard, NoAnswer, ask

URL: Final = "http://169.254.169.254"
_TOKEN_S: Final = 21_600
_TIMEOUT_S: Final = 2.0
_LONGEST_S: Final = 120.0  # what AWS promises; a clock that is wrong must not make more of it


class AwsNotices:
    """Looks for an interruption, then for a rebalance recommendation."""

    pause_s = 5.0

    def __init__(self, url: str = URL, *, clock: Callable[[], float] = time.time) -> None:
        self._url, self._clock = url.rstrip("/"), clock
        self._token = ""

    def look(self) -> Heard | None:
        """One look; raises NoAnswer."""
        planned = self._get("spot/instance-action")
        if planned.status == 200:
            return self._interruption(planned.text)
        advised = self._get("events/recommendations/rebalance")
        if advised.status == 200:
            return Heard(
                "AWS says that this machine is more likely than others to be taken away soon (rebalance).", None
            )
        return None

    def _interruption(self, text: str) -> Heard:
        try:
            body = json.loads(text)
            action, at = str(body["action"]), datetime.fromisoformat(str(body.get("time") or _EPOCH))
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise NoAnswer(f"spot/instance-action says what is no notice: {text[:200]!r}") from exc
        left = at.replace(tzinfo=at.tzinfo or UTC).timestamp() - self._clock()
        if action == "hibernate":
            left = 0.0  # it does not wait
        left = min(max(left, 0.0), _LONGEST_S)
        return Heard(f"AWS will {action} this machine in {left:.0f} s.", left)

    def _get(self, path: str) -> Answer:
        """Ask with a token; one that the service does not take any more is replaced once."""
        for is_last in (False, True):
            if not self._token:
                self._token = self._new_token()
            try:
                headers = {"X-aws-ec2-metadata-token": self._token}
                return ask(f"{self._url}/latest/meta-data/{path}", headers, timeout_s=_TIMEOUT_S)
            except NoAnswer:
                self._token = ""
                if is_last:
                    raise
        raise AssertionError("unreachable")

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
        answer = ask(f"{self._url}/latest/api/token", headers, timeout_s=_TIMEOUT_S, method="PUT", body=b"")
        if answer.status != 200 or not answer.text:
            raise NoAnswer(f"{self._url} gives no token")
        return answer.text.strip()


_EPOCH: Final = "1970-01-01T00:00:00+00:00"
