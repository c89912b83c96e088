"""The metadata service of the pretend AWS's machines, where a spot machine reads that it will be taken away.

    python metadata.py --host 169.254.169.254 --notices FILE

FILE is a JSON map, private address -> the text of `spot/instance-action`; read at every request. A machine is known by
the address it asks from. Only what a watcher of preemptions asks for is here, in AWS's second version (with a token).
Source: "Spot Instance interruption notices" and "Use IMDSv2" in the EC2 User Guide.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from machines import die_with_parent

_TOKEN = "token-of-the-box"


class Metadata(BaseHTTPRequestHandler):
    """Answers one request."""

    notices: ClassVar[Path]

    def do_PUT(self) -> None:
        """Hand out a token."""
        self._answer(200 if self.path == "/latest/api/token" else 404, _TOKEN)

    def do_GET(self) -> None:
        """Answer with the notice of the machine that asks, if there is one."""
        if self.headers.get("X-aws-ec2-metadata-token") != _TOKEN:
            return self._answer(401, "")
        notice = json.loads(self.notices.read_text()).get(self.client_address[0])
        is_asked = self.path == "/latest/meta-data/spot/instance-action"
        return self._answer(200, notice) if notice and is_asked else self._answer(404, "")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: machines ask every few seconds."""

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="The metadata service of pretend machines.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--notices", type=Path, required=True)
    given = parser.parse_args()
    die_with_parent()
    Metadata.notices = given.notices
    ThreadingHTTPServer((given.host, 80), Metadata).serve_forever()


if __name__ == "__main__":
    main()
