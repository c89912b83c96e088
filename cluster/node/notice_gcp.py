"""GCP: a spot machine's end is announced by the metadata server, 30 seconds before it is forced to stop.

Source: cloud.google.com/compute/docs/instances/spot (instance/preempted becomes TRUE; the guest has up to 30 s from
the ACPI signal that comes with it), cloud.google.com/compute/docs/metadata/querying-metadata (Metadata-Flavor: Google;
wait_for_change holds the answer back until the value changes, timeout_sec bounds the wait, last_etag says what is
known; the answer's ETag) and .../instances/live-migration-process (instance/maintenance-event is NONE,
MIGRATE_ON_HOST_MAINTENANCE or TERMINATE_ON_HOST_MAINTENANCE; machines with GPUs cannot be moved and hear of it up to an
hour before). 2026-11.
"""

from __future__ import annotations

from typing import Final

from cluster.node.metadata import Heard, NoAnswer, ask

HOST: Final = "metadata.google.internal"
WINDOW_S: Final = 30.0
_HOLD_S: Final = 10  # how long one question may be held back; the other value is asked for in between
_TIMEOUT_S: Final = 20.0


class GcpNotices:
    """Waits on `preempted`; looks at `maintenance-event` each time that wait is over."""

    pause_s = 0.5

    def __init__(self, host: str = HOST, *, hold_s: int = _HOLD_S) -> None:
        self._root, self._hold_s = f"http://{host}/computeMetadata/v1/instance", hold_s
        self._etag = "0"  # what no value has: the first question is answered at once

    def look(self) -> Heard | None:
        """One look; raises NoAnswer."""
        question = f"wait_for_change=true&timeout_sec={self._hold_s}&last_etag={self._etag}"
        text, self._etag = self._get(f"preempted?{question}")
        if text == "TRUE":
            return Heard(f"GCP takes this machine away within {WINDOW_S:.0f} s.", WINDOW_S)
        if text != "FALSE":
            raise NoAnswer(f"instance/preempted says {text[:80]!r}, which is neither TRUE nor FALSE")
        if self._get("maintenance-event")[0] == "TERMINATE_ON_HOST_MAINTENANCE":
            return Heard("GCP stops this machine for maintenance of its host.", WINDOW_S)
        return None

    def _get(self, path: str) -> tuple[str, str]:
        answer = ask(f"{self._root}/{path}", {"Metadata-Flavor": "Google"}, timeout_s=self._hold_s + _TIMEOUT_S)
        if answer.status != 200:
            raise NoAnswer(f"{self._root}/{path} is not there")
        etag = next((value for name, value in answer.headers.items() if name.lower() == "etag"), "0")
        return answer.text.strip(), etag
