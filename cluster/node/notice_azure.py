"""Azure: a spot machine's eviction is a Scheduled Event of type Preempt, at least 30 seconds before.

Source: learn.microsoft.com/azure/virtual-machines/linux/scheduled-events (GET /metadata/scheduledevents, header
Metadata: true; Events with EventType Freeze, Reboot, Redeploy, Preempt or Terminate, EventStatus Scheduled or Started,
NotBefore as an HTTP date, empty once it has started, and Resources, the names of the machines it is about; the service
is switched on by the first question, which may take up to two minutes; Preempt comes at least 30 s before) and
.../instance-metadata-service (compute/name). 2026-11. A machine that is only frozen or rebooted hears of it 15 minutes
before; a reboot ends the run there as much as an eviction does, a freeze of seconds does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from cluster.node.metadata import Heard, NoAnswer, ask

URL: Final = "http://169.254.169.254"
_ENDING: Final = frozenset({"Preempt", "Terminate", "Redeploy", "Reboot"})
_TIMEOUT_S: Final = 130.0
_SHORTEST_S: Final = 30.0  # promised for Preempt, the shortest of them
_HEADERS: Final = {"Metadata": "true"}


class AzureNotices:
    """Looks for an event that ends this very machine: one answer names those of all machines of a scale set."""

    pause_s = 1.0

    def __init__(self, url: str = URL, *, clock: Callable[[], float] = time.time) -> None:
        self._url, self._clock = url.rstrip("/"), clock
        self._name = ""

    def look(self) -> Heard | None:
        """One look; raises NoAnswer."""
        if not self._name:
            self._name = self._get("instance/compute/name?api-version=2021-02-01&format=text").strip()
        text = self._get("scheduledevents?api-version=2020-07-01")
        try:
            events: list[dict[str, Any]] = json.loads(text)["Events"]
            ours = [one for one in events if one["EventType"] in _ENDING and self._name in one["Resources"]]
            heard = [(self._left(one), str(one["EventType"])) for one in ours]
        except (ValueError, KeyError, TypeError) as exc:
            raise NoAnswer(f"scheduledevents says what is no list of events: {text[:200]!r}") from exc
        if not heard:
            return None
        left, kind = min(heard)
        return Heard(f"Azure plans {kind} for this machine in {left:.0f} s.", left)

    def _left(self, event: dict[str, Any]) -> float:
        """Seconds until it may begin; an event that names no time has started."""
        if not event.get("NotBefore"):
            return 0.0 if event.get("EventStatus") == "Started" else _SHORTEST_S
        at = parsedate_to_datetime(str(event["NotBefore"]))
        return max(at.replace(tzinfo=at.tzinfo or UTC).timestamp() - self._clock(), 0.0)

    def _get(self, path: str) -> str:
        answer = ask(f"{self._url}/metadata/{path}", _HEADERS, timeout_s=_TIMEOUT_S)
        if answer.status != 200:
            raise NoAnswer(f"{self._url}/metadata/{path} is not there")
        return answer.text
