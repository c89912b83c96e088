"""What became of a cloud's runs and machines, in words, for a scenario that failed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conftest import Cloud

_RECORD = re.compile(r"here/([a-z0-9-]+)/(attempts/\d+\.(?:claim|base|end)|events/.*)\.json")
_MOST_LINES = 120  # of each part, the newest
_MOST_LETTERS = 300  # of each line
_TALK = re.compile(r"^\s*$|<sky-payload>|^-+$")


def aftermath(cloud: Cloud) -> str:
    """The machines there ever were, the records and events of every run, and the end of SkyPilot's own logs.

    What cannot be had is named: a scenario may have failed because the box did not answer.
    """
    parts = {"machines": _machines, "runs": _runs, "the user's command": _command, "SkyPilot": _controller}
    lines = []
    for title, part in parts.items():
        lines.append(f"== {title}")
        try:
            lines += [line[:_MOST_LETTERS] for line in list(part(cloud))[-_MOST_LINES:]]
        except Exception as exc:  # noqa: BLE001 - the failure itself has to be shown, whatever is wrong with the box
            lines.append(f"(cannot be had: {type(exc).__name__}: {exc})")
    return "\n".join(lines)


def _machines(cloud: Cloud) -> Iterator[str]:
    from bills import EVER

    for one in cloud.box.machines(states=EVER):
        said = one.said
        why = said.get("StateTransitionReason", "")
        yield f"{one.instance} {one.cluster} {one.region} {said['State']['Name']} from {said['LaunchTime']} {why}"


def _runs(cloud: Cloud) -> Iterator[str]:
    events = []
    for key, body in cloud.records():
        if (found := _RECORD.fullmatch(key)) is None:
            continue
        told = json.loads(body)
        if found[2].startswith("attempts/"):
            yield f"{found[1]} {found[2]}: {json.dumps(told)}"
        else:
            events += [(one["t"], f"{found[1]} {found[2]}: {json.dumps(one)}") for one in told.get("events", ())]
    yield from (f"{t} {line}" for t, line in sorted(events))


def _command(cloud: Cloud) -> Iterator[str]:
    err = cloud.folder / "err"
    return iter(err.read_text().splitlines() if err.exists() else ())


def _controller(cloud: Cloud) -> Iterator[str]:
    for path in sorted((cloud.box.home / "sky_logs" / "jobs_controller").glob("[0-9]*.log")):
        for line in path.read_text(errors="replace").splitlines():
            if not _TALK.search(line):
                yield f"{path.name}: {line}"
