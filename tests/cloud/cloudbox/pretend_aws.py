"""A pretend AWS: moto's server, which can also be told to have no capacity in some regions.

    python pretend_aws.py --host ADDRESS --port PORT --refuse FILE --changed FILE

The first FILE is a JSON map, region -> beginnings of cluster names; RunInstances for one of those there is answered as
AWS does it, InsufficientInstanceCapacity. It is read at every request, so a test gives and takes capacity while
everything runs. The second is touched after every request that may have changed which instances run.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

_SCOPE = re.compile(r"Credential=[^/]+/\d+/([a-z0-9-]+)/ec2/")
_CHANGES = re.compile(rb"Action=(Run|Terminate|Stop|Start)Instances|Action=RequestSpotInstances")
_REFUSAL = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code><Message>We currently do not have sufficient capacity
in the Availability Zone you requested.</Message></Error></Errors><RequestID>box</RequestID></Response>"""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Door:
    """Stands before moto: answers RunInstances in regions that are sold out, and notes when machines come and go.

    It also lets conditional writes to S3 through one at a time: moto looks first and writes then, so that of two that
    come together both would win, which S3 promises not to do.
    """

    def __init__(self, application: Application, refuse: Path, changed: Path) -> None:
        self._application, self._refuse, self._changed = application, refuse, changed
        self._conditional = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" in environ and environ["REQUEST_METHOD"] in ("PUT", "POST"):
            with self._conditional:
                return list(self._application(environ, start_response))
        scope = _SCOPE.search(environ.get("HTTP_AUTHORIZATION", ""))
        if scope and environ["REQUEST_METHOD"] == "POST":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if b"Action=RunInstances" in body and self._is_refused(scope[1], body.decode()):
                start_response("500 Internal Server Error", [("Content-Type", "text/xml")])
                return [_REFUSAL]
            if _CHANGES.search(body):
                answer = list(self._application(environ, start_response))
                self._changed.touch()
                return answer
        return self._application(environ, start_response)

    def _is_refused(self, region: str, body: str) -> bool:
        """Whether a cluster of one of these names asks (SkyPilot tags what it starts); "" refuses everybody."""
        refused: dict[str, list[str]] = json.loads(self._refuse.read_text())
        return any(not name or f"Value={name}-" in body for name in refused.get(region, ()))


class QuietHandler(WSGIRequestHandler):
    """Says nothing about requests that went well."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        if not str(code).startswith(("2", "3")):
            super().log_request(code, size)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="A pretend AWS.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--refuse", type=Path, required=True)
    parser.add_argument("--changed", type=Path, required=True)
    given = parser.parse_args()
    application = Door(DomainDispatcherApplication(create_backend_app), given.refuse, given.changed)
    run_simple(given.host, given.port, application, threaded=True, request_handler=QuietHandler)


if __name__ == "__main__":
    main()
