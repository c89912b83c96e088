"""Asking the metadata service of the machine this runs on, over plain HTTP, and what is heard from it about its end."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

_MOST_BYTES = 1 << 20
# The services are link-local: whatever proxy the environment names must not be asked for them.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class NoAnswer(Exception):
    """The service is not there, refused, or said what nobody understands; the text says which."""


@dataclass(frozen=True)
class Answer:
    """What it answered; status 404 is an answer too (AWS says "nothing is planned" like this)."""

    status: int
    text: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Heard:
    """What a cloud said about this machine's end.

    Attributes:
        words: for the log and the run's events.
        seconds_left: until the machine goes; None for advice that it may go (AWS: rebalance), with no time named.
    """

    words: str
    seconds_left: float | None


class NoticeSource(Protocol):
    """One cloud's service.

    Attributes:
        pause_s: between two questions.
    """

    pause_s: float

    def look(self) -> Heard | None:
        """Ask once; may wait for as long as the service holds its answer back. None: nothing is planned.

        Raises:
            NoAnswer: nobody can say.
        """
        ...


def ask(
    url: str, headers: Mapping[str, str], *, timeout_s: float, method: str = "GET", body: bytes | None = None
) -> Answer:
    """Ask once.

    Raises:
        NoAnswer: no connection, no answer in time, or a status other than 2xx and 404.
    """
    request = urllib.request.Request(url, data=body, headers=dict(headers), method=method)
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return Answer(answer.status, answer.read(_MOST_BYTES).decode("utf-8", "replace"), dict(answer.headers))
    except urllib.error.HTTPError as exc:
        with exc:
            if exc.code == 404:
                return Answer(404, "", {})
            raise NoAnswer(f"{url} answers {exc.code}") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise NoAnswer(f"{url} does not answer: {exc}") from exc
