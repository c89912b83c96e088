"""Checkpoints that a command writes as folders: recognised when complete, committed, and put back for the next attempt.

A folder whose name ends in its step (checkpoint-500, step_500) is complete when it holds a file named SETTLED, or
Hugging Face's trainer_state.json, which a Trainer writes last, and nothing in it has changed between two looks.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from checkpoints.errors import CheckpointError, Damaged, NoGoodCommit, NotCommitted
from checkpoints.keys import CommitRef
from checkpoints.manifest import Manifest
from checkpoints.mapped import map_file
from checkpoints.reader import CommitReader
from checkpoints.retention import Retention
from checkpoints.writer import CommitWriter
from cluster.node.attempt_context import AttemptContext

logger = logging.getLogger(__name__)

SETTLED: Final = "SETTLED"
TRAINER_STATE: Final = "trainer_state.json"
SETTLE_S: Final = 1.0
"""Time between two looks at a folder that have to agree."""

_STEP = re.compile(r".*?(\d+)")

_Look = dict[str, tuple[int, int]]
"""File -> (size, time of the last change in ns)."""


class WatchedFolder:
    """One attempt's view of the folder. `look` is called again and again; commits are made by a thread, one by one."""

    def __init__(self, ctx: AttemptContext, folder: Path) -> None:
        self._ctx, self._folder = ctx, folder
        self._seen: dict[int, tuple[_Look, float]] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._newest = 0
        job = ctx.job.checkpoints
        self._retention = Retention(
            ctx.store, ctx.layout, stage="train", fence=ctx.fence, keep=job.keep, keep_every=job.keep_every
        )
        self.saves: list[dict[str, Any]] = []
        """Facts about finished commits, for the caller to take."""

    def restore(self, candidates: Sequence[CommitRef]) -> tuple[CommitRef, Path]:
        """Put the newest candidate that is whole back as the folder it was; returns it and the folder.

        Raises:
            NoGoodCommit: all are damaged.
        """
        for ref in candidates:
            try:
                target = self._copy_out(ref)
            except (Damaged, NotCommitted) as exc:
                logger.warning("%s cannot be used: %s", ref, exc)
                continue
            self._newest = ref.position
            return ref, target
        raise NoGoodCommit(f"None of the {len(candidates)} commits of this run is whole, so it cannot go on from one.")

    def look(self, *, now: float | None = None) -> None:
        """Begin to commit the next complete folder, if there is one and nothing is under way.

        Raises:
            CheckpointError: what the last commit ran into.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._thread is not None and self._thread.is_alive():
            return
        at = time.monotonic() if now is None else now
        for step, path in self._candidates():
            found = _listing(path)
            before = self._seen.get(step)
            if before is None or before[0] != found:
                self._seen[step] = (found, at)
            elif at - before[1] >= SETTLE_S:
                self._thread = threading.Thread(target=self._commit, args=(step, path), name="watched", daemon=True)
                self._thread.start()
                return

    def finish(self, *, was_killed: bool = False) -> None:
        """Commit what is complete now that the command is gone and nothing changes any more; wait for it.

        Args:
            was_killed: it had no time to end what it did. What changed within SETTLE_S before is no checkpoint then:
                the mark may be one rank's, while another still wrote its part.

        Raises:
            CheckpointError: a commit failed.
        """
        if self._thread is not None:
            self._thread.join()
        for step, path in reversed(self._candidates()):
            if was_killed and time.time() - _changed_at(path) < SETTLE_S:
                logger.warning("%s was being written when the command was killed, and is not committed", path.name)
                continue
            self._commit(step, path)
            break
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def saving(self) -> int | None:
        """The step that is being committed."""
        return self._newest if self._thread is not None and self._thread.is_alive() else None

    def _candidates(self) -> list[tuple[int, Path]]:
        """Complete-looking folders of steps beyond the newest committed, by step."""
        if not self._folder.is_dir():
            return []
        found = []
        for path in self._folder.iterdir():
            named = _STEP.fullmatch(path.name)
            if named and path.is_dir() and int(named[1]) > self._newest and _is_marked(path):
                found.append((int(named[1]), path))
        return sorted(found)

    def _commit(self, step: int, path: Path) -> None:
        began = time.monotonic()
        previous, self._newest = self._newest, step
        try:
            manifest, stored = self._write(step, path)
        except FileNotFoundError as exc:  # the command keeps only its newest, and this one's time was up
            logger.warning("%s was deleted while it was being stored, and is not committed: %s", path.name, exc)
            self._newest = previous
            return
        except (CheckpointError, OSError, ValueError) as exc:  # on a thread here: it belongs to the one that asks
            self._error = exc
            return
        seconds = time.monotonic() - began
        fact = {"position": step, "stall_s": 0.0, "seconds": seconds, "bytes": manifest, "stored_bytes": stored}
        self.saves.append({**fact, "committed": True})

    def _write(self, step: int, path: Path) -> tuple[int, int]:
        ctx = self._ctx
        writer = CommitWriter(ctx.store, ctx.layout, CommitRef("train", step, ctx.attempt), fence=ctx.fence)
        for name in sorted(_listing(path)):
            with (path / name).open("rb") as file:
                writer.put(name, map_file(file))
        meta = {"folder": path.name, **_trainer_state(path)}
        manifest = writer.publish(meta=meta)
        self._tidy(manifest)
        return manifest.size_bytes, manifest.stored_bytes

    def _tidy(self, manifest: Manifest) -> None:
        """Let retention follow; the save is committed whatever that runs into, and the next one tidies again."""
        try:
            self._retention.after_commit(manifest)
        except CheckpointError as exc:
            logger.warning("old checkpoints were not deleted; the next save tries again: %s", exc)

    def _copy_out(self, ref: CommitRef) -> Path:
        reader = CommitReader.open(self._ctx.store, self._ctx.layout, ref)
        name = Path(str(reader.manifest.meta.get("folder", f"checkpoint-{ref.position}"))).name
        partial = self._folder.with_name(f"{self._folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        reader.copy_to(partial)
        self._folder.mkdir(parents=True, exist_ok=True)
        partial.rename(self._folder / name)
        return self._folder / name


def _is_marked(path: Path) -> bool:
    return (path / SETTLED).is_file() or bool(_trainer_state(path))


def _listing(path: Path) -> _Look:
    """Every file below a folder, but for the marker; one that vanishes meanwhile is left out."""
    found: _Look = {}
    for file in path.rglob("*"):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        if file.is_file() and file.name != SETTLED:
            found[file.relative_to(path).as_posix()] = (stat.st_size, stat.st_mtime_ns)
    return found


def _changed_at(path: Path) -> float:
    """When a file below a folder changed last, seconds since 1970."""
    return max((changed_ns for _, changed_ns in _listing(path).values()), default=0) / 1e9


def _trainer_state(path: Path) -> dict[str, Any]:
    """{"trainer_state": ...} of a Hugging Face checkpoint; empty for others, and for one half written."""
    try:
        body = json.loads((path / TRAINER_STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"trainer_state": body} if isinstance(body, dict) else {}
