"""Marker files in a node's scratch folder: what it is doing right now, readable after a SIGKILL.

The drill aims its kills by them, and the supervisor reads how far a node that could not speak had come. They are
information about one machine, never state: everything that is state is a commit in the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Phase(StrEnum):
    """What a node does; values are what the file `phase` holds."""

    STARTING = "starting"
    GENERATION = "generation"
    STEP = "step"
    EXPORT = "export"


@dataclass(frozen=True)
class Marks:
    """What the marker files of one node say. `reached` is (stage, position) of the last finished unit of work."""

    phase: Phase
    saving: int | None
    reached: tuple[str, int] | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"phase": self.phase.value, "saving": self.saving, "reached": self.reached}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Marks:
        """Read what `to_json` wrote."""
        reached = body["reached"]
        return cls(Phase(body["phase"]), body["saving"], (reached[0], reached[1]) if reached else None)


class PhaseMarker:
    """Writes the markers; every write replaces a whole small file, so a reader never sees half of one."""

    def __init__(self, scratch: Path) -> None:
        """Take the node's scratch folder (it must exist); other processes of the node may write markers too."""
        self._scratch = scratch

    def start(self) -> None:
        """Mark the start of the node."""
        self.saving(None)
        self.enter(Phase.STARTING)

    def enter(self, phase: Phase) -> None:
        """Say what the node does from now on."""
        self._write("phase", phase.value)

    def saving(self, position: int | None) -> None:
        """Say that the save of a position has started, or with None that no save is in flight."""
        if position is None:
            (self._scratch / "saving").unlink(missing_ok=True)
        else:
            self._write("saving", str(position))

    def reached(self, stage: str, position: int) -> None:
        """Say how far the work has come, committed or not; costs about 50 us."""
        self._write("reached", f"{stage} {position}")

    def _write(self, name: str, text: str) -> None:
        temporary = self._scratch / f".{name}.{os.getpid()}.tmp"  # the node and its rank 0 both mark
        temporary.write_text(text)
        temporary.replace(self._scratch / name)


def read_marks(scratch: Path) -> Marks:
    """Read what a node, alive or dead, last marked; a node that marked nothing was starting."""
    phase = _read(scratch / "phase")
    saving = _read(scratch / "saving")
    reached = _read(scratch / "reached")
    stage, _, position = (reached or "").partition(" ")
    return Marks(
        phase=Phase(phase) if phase else Phase.STARTING,
        saving=int(saving) if saving else None,
        reached=(stage, int(position)) if position else None,
    )


def last_marked_s(scratch: Path) -> float | None:
    """Unix time of a node's newest mark, which it was alive to make; None if it made none or its disk is gone."""
    times = [path.stat().st_mtime for name in ("phase", "saving", "reached") if (path := scratch / name).exists()]
    return max(times, default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # nothing was marked, or its disk is what failed
        return None
