"""Where a secret may stand, and looking for it everywhere else: files, the store, and every command line meanwhile.

The places are those that docs/SECURITY.md names, in the same words; a test compares the two. `task` is a secret that a
job lists, which SkyPilot hands to the machine; `cloud` is the key of the user's account.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

IN_FILES = (
    ("task", "~/.sky/api_server/requests.db"),
    ("task", "~/.sky/managed_jobs/"),
    ("task", "~/.sky/spot_jobs.db"),
    ("cloud", "~/.aws/credentials"),
    ("cloud", "$TMPDIR/sky-tmp"),
)
"""(whose, where); a folder ends with a slash. A database has `-wal` and `-shm` beside it. What begins with $TMPDIR is
how the name of a folder there begins (sky.utils.tempstore of 0.14.1).
"""
IN_COMMANDS = (("task", "ssh"), ("task", "bash"), ("task", "sh"))
"""(whose, program): SkyPilot's `ssh`, and the shells at both of its ends."""
_EVERY_S = 0.5


@dataclass(frozen=True)
class Secret:
    """A value that somebody was given. `whose` is task or cloud."""

    whose: str
    name: str
    value: str

    @cached_property
    def forms(self) -> tuple[bytes, ...]:
        """What to look for: the value itself, and what base64 makes of it, wherever in a longer text it begins."""
        raw = self.value.encode()
        coded = []
        for before in range(3):  # the first and the last characters depend on what stands beside it
            text = base64.b64encode(b"\0" * before + raw)
            coded.append(text[4 if before else 0 : len(text) // 4 * 4 - 4])
        return (raw, *coded)

    def is_in(self, data: bytes) -> bool:
        """Whether these bytes hold it."""
        return any(form in data for form in self.forms)


def leaked_files(folder: Path, home: Path, secrets: Mapping[str, Secret]) -> list[str]:
    """Files below a folder that hold a secret and may not, as `NAME in PATH`.

    Args:
        folder: everything of the box, with TMPDIR as `tmp`; home: the user's HOME within it.
        secrets: by name.
    """
    found = []
    homes = {"~": home, "$TMPDIR": folder / "tmp"}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # a log that was just turned over
            continue
        found += [f"{one.name} in {path}" for one in secrets.values() if one.is_in(data) and not _may(one, path, homes)]
    return found


def leaked_objects(objects: Iterator[tuple[str, bytes]], secrets: Mapping[str, Secret]) -> list[str]:
    """Objects of a store that hold a secret; none may."""
    return [f"{one.name} in {key}" for key, data in objects for one in secrets.values() if one.is_in(data)]


def _may(secret: Secret, path: Path, homes: Mapping[str, Path]) -> bool:
    places = [f"{word}/{path.relative_to(home)}" for word, home in homes.items() if path.is_relative_to(home)]
    for whose, known in IN_FILES:
        names = (known, f"{known}-wal", f"{known}-shm") if known.endswith(".db") else (known,)
        is_below = known.endswith("/") or known.startswith("$TMPDIR")
        if whose == secret.whose and any(one in names or (is_below and one.startswith(known)) for one in places):
            return True
    return False


class CommandLines:
    """Looks at the command line of every process of this computer, again and again, for secrets.

        with CommandLines(secrets) as seen: ...
        assert seen.leaks == []

    Args:
        proc: where the kernel shows processes.

    Attributes:
        leaks: `NAME on the command line of PROGRAM`, each once.
        looked_at: command lines read.
    """

    def __init__(self, secrets: Mapping[str, Secret], *, proc: Path = Path("/proc")) -> None:
        self._secrets, self._proc = secrets, proc
        self._found: set[str] = set()
        self.looked_at = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def leaks(self) -> list[str]:
        return sorted(self._found)

    def look(self) -> None:
        """Look once."""
        for folder in self._proc.iterdir():
            if not folder.name.isdigit():
                continue
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            self.looked_at += 1
            program = Path(line.split(b"\0")[0].decode(errors="replace")).name
            for one in self._secrets.values():
                if one.is_in(line) and (one.whose, program) not in IN_COMMANDS:
                    self._found.add(f"{one.name} on the command line of {program}")

    def _watch(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            self.look()
