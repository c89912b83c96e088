"""What a look around has found: one sentence each, how bad it is, and what to do about it. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad it is; values are what `--json` prints."""

    OK = "ok"
    NOTE = "note"  # worth knowing, nothing to do
    MISSING = "missing"  # something that some jobs need is not there
    BROKEN = "broken"  # something that was set up does not work
    BILLING = "billing"  # something costs money that nobody wants

    @property
    def is_bad(self) -> bool:
        """Whether somebody has to do something."""
        return self in (Level.BROKEN, Level.BILLING)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: in two or three words: "credentials of AWS".
        words: what was found.
        command: what the user can type to change it; empty if there is nothing to do.
        repair: name of a repair that `doctor --fix` knows; empty if it knows none.
        target: what the repair is about (an instance as region/id, a job's number).
    """

    level: Level
    what: str
    words: str
    command: str = ""
    repair: str = ""
    target: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "level": self.level.value}
