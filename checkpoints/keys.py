"""Where things live in a run: (stage, position, attempt) -> key and back. Pure.

    <folder>/<item><position>/attempt-<attempt>/manifest.json      a commit, for example
    checkpoints/step-00000400/attempt-000002/manifest.json
    attempts/000002.claim.json  .base_copy.json  .base.json  .lease.json  .end.json

Numbers are zero-padded so that names sort, but nothing here trusts the order of names: keys are parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

MANIFEST = "manifest.json"
ATTEMPTS = "attempts/"
ATTEMPT_KINDS = ("claim", "base", "lease", "end", "base_copy")
_ATTEMPT_KEY = re.compile(r"attempts/(\d{6,})\.(claim|base|lease|end|base_copy)\.json")
_FOLDER = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)


@dataclass(frozen=True)
class Stage:
    """One stage of a run and how its positions are written.

    `item` and `digits` spell the folder of a position ("step-", 8 -> "step-00000400"); an empty `item` means that the
    stage has the single position 0 and no folder for it.
    """

    name: str
    folder: str
    item: str
    digits: int

    def __post_init__(self) -> None:
        if not _FOLDER.fullmatch(self.folder):
            raise ValueError(f"stage {self.name!r}: folder {self.folder!r} must be plain path segments")
        if bool(self.item) != (self.digits > 0):
            raise ValueError(f"stage {self.name!r}: item and digits go together, got {self.item!r} and {self.digits}")


@dataclass(frozen=True, order=True)
class CommitRef:
    """Names one commit. Its order as a tuple means nothing across stages: use `Layout.sort_key`."""

    stage: str
    position: int
    attempt: int

    def to_json(self) -> dict[str, Any]:
        return {"stage": self.stage, "position": self.position, "attempt": self.attempt}

    @classmethod
    def from_json(cls, value: Any) -> CommitRef:
        """Raises ValueError when `value` is not {stage: str, position: int, attempt: int}."""
        match value:
            case {"stage": str(stage), "position": int(position), "attempt": int(attempt)}:
                return cls(stage, position, attempt)
        raise ValueError(f"{value!r} does not name a commit: expected stage, position and attempt")

    def __str__(self) -> str:
        return f"{self.stage} {self.position} (attempt {self.attempt})"


@dataclass(frozen=True)
class Layout:
    """The stages of a run; their order is the order of time."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for what in ("name", "folder"):
            values = [getattr(stage, what) for stage in self.stages]
            if len(set(values)) != len(values):
                raise ValueError(f"two stages share a {what}: {values}")

    def stage(self, name: str) -> Stage:
        return self.stages[self.stage_index(name)]

    def stage_index(self, name: str) -> int:
        for index, stage in enumerate(self.stages):
            if stage.name == name:
                return index
        raise KeyError(f"there is no stage {name!r}, only {[stage.name for stage in self.stages]}")

    def sort_key(self, ref: CommitRef) -> tuple[int, int, int]:
        """(stage, position, attempt): the greatest is the newest."""
        return (self.stage_index(ref.stage), ref.position, ref.attempt)

    def reach(self, ref: CommitRef) -> tuple[int, int]:
        """How far a run got with `ref`, whoever committed it: (stage, position)."""
        return (self.stage_index(ref.stage), ref.position)

    def position_prefix(self, stage: Stage, position: int) -> str:
        if not stage.item:
            if position != 0:
                raise ValueError(f"stage {stage.name!r} has the single position 0, got {position}")
            return f"{stage.folder}/"
        if position < 0:
            raise ValueError(f"positions start at 0, got {position}")
        return f"{stage.folder}/{stage.item}{position:0{stage.digits}d}/"

    def commit_prefix(self, ref: CommitRef) -> str:
        """The folder of a commit with its trailing slash: `checkpoints/step-00000400/attempt-000002/`."""
        if ref.attempt < 1:
            raise ValueError(f"attempts are numbered from 1, got {ref.attempt}")
        return f"{self.position_prefix(self.stage(ref.stage), ref.position)}attempt-{ref.attempt:06d}/"

    def manifest_key(self, ref: CommitRef) -> str:
        return self.commit_prefix(ref) + MANIFEST

    def parse_key(self, key: str) -> tuple[CommitRef, str] | None:
        """Split a key into the commit it belongs to and the object's name; None when it belongs to none."""
        for stage in self.stages:
            number = rf"{re.escape(stage.item)}(?P<position>\d{{{stage.digits},}})/" if stage.item else ""
            found = re.fullmatch(rf"{re.escape(stage.folder)}/{number}attempt-(?P<attempt>\d{{6,}})/(?P<name>.+)", key)
            if not found:
                continue
            ref = CommitRef(stage.name, int(found["position"]) if stage.item else 0, int(found["attempt"]))
            # "step-0000000400" parses too, but it is not how we write 400: two spellings would be two commits.
            if ref.attempt >= 1 and key == self.commit_prefix(ref) + found["name"]:
                return ref, found["name"]
        return None

    def parse_manifest_key(self, key: str) -> CommitRef | None:
        parsed = self.parse_key(key)
        return parsed[0] if parsed and parsed[1] == MANIFEST else None


TRAIN_ONLY = Layout((Stage("train", "checkpoints", "step-", 8),))
"""For use without the rest of the project: one stage, checkpoints of a training run."""


def attempt_key(number: int, kind: str) -> str:
    if number < 1 or kind not in ATTEMPT_KINDS:
        raise ValueError(f"no such attempt record: number {number} (from 1), kind {kind!r} (one of {ATTEMPT_KINDS})")
    return f"{ATTEMPTS}{number:06d}.{kind}.json"


def claim_key(number: int) -> str:
    return attempt_key(number, "claim")


def base_key(number: int) -> str:
    return attempt_key(number, "base")


def base_copy_key(number: int) -> str:
    return attempt_key(number, "base_copy")


def lease_key(number: int) -> str:
    return attempt_key(number, "lease")


def end_key(number: int) -> str:
    return attempt_key(number, "end")


def parse_attempt_key(key: str) -> tuple[int, str] | None:
    """`attempts/000002.claim.json` -> (2, "claim"); None for anything else."""
    found = _ATTEMPT_KEY.fullmatch(key)
    if not found:
        return None
    number = int(found[1])
    return (number, found[2]) if number >= 1 and key == attempt_key(number, found[2]) else None
