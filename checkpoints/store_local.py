"""file:// : atomic puts by temporary file, fsync and rename; put-once by os.link, which the kernel makes exclusive."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from checkpoints.errors import PutOnceUnsupported

_TEMPORARY = ".tmp-"
_WRITE_BYTES = 64 * 2**20  # one write() of more than 2 GiB is cut short by Linux
_FOLDER_TRIES = 8
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalDriver:
    """Objects as files below `root`. What was put survives a crash of the machine: file and folder are fsynced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.uri = root.as_uri()

    def write(self, key: str, data: bytes | memoryview) -> None:
        path = self._root / key
        temporary = self._write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise
        _sync_folder(path.parent)

    def create(self, key: str, data: bytes) -> bool:
        path = self._root / key
        temporary = self._write_temporary(path, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as exc:
            if exc.errno in _NO_HARD_LINKS:
                raise PutOnceUnsupported(
                    f"{self.uri}: this file system has no hard links, and without them two writers could both believe "
                    "they were first. Put the store on a local disk or NFS, or use s3://, gs:// or az://."
                ) from exc
            raise
        finally:
            _remove(temporary)
        _sync_folder(path.parent)
        return True

    def read(self, key: str, start: int, length: int | None) -> bytes:
        descriptor = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            wanted = max(0, size - start if length is None else min(length, size - start))
            parts, done = [], 0
            while done < wanted and (part := os.pread(descriptor, wanted - done, start + done)):
                parts.append(part)
                done += len(part)
        finally:
            os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        descriptor = os.open(self._root / key, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < len(view) and (count := os.preadv(descriptor, [view[done:]], start + done)):
                done += count
        finally:
            os.close(descriptor)
        return done

    def size(self, key: str) -> int | None:
        try:
            return (self._root / key).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list(self, prefix: str) -> list[str]:
        folder = prefix.rpartition("/")[0]
        return [
            key
            for key in self._walk(folder)
            if key.startswith(prefix) and not key.rpartition("/")[2].startswith(_TEMPORARY)
        ]

    def delete(self, keys: Sequence[str]) -> None:
        folders = set()
        for key in keys:
            path = self._root / key
            _remove(path)
            folders.add(path.parent)
        for folder in folders:
            self._remove_empty(folder)

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool]) -> int:
        left = [
            key
            for key in self._walk(prefix.rpartition("/")[0])
            if key.startswith(prefix) and key.rpartition("/")[2].startswith(_TEMPORARY) and wanted(key)
        ]
        self.delete(left)
        return len(left)

    def _walk(self, folder: str) -> Iterator[str]:
        """Keys of all files below `folder`; a folder that vanishes while we look holds nothing."""
        waiting = [str(self._root / folder) if folder else str(self._root)]
        start = len(str(self._root).rstrip("/")) + 1
        while waiting:
            try:
                entries = list(os.scandir(waiting.pop()))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry.path[start:]

    def _write_temporary(self, path: Path, data: bytes | memoryview) -> Path:
        temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        descriptor = self._open_new(temporary)
        try:
            try:
                view = memoryview(data).cast("B")
                done = 0
                while done < len(view):
                    done += os.write(descriptor, view[done : done + _WRITE_BYTES])
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            _remove(temporary)
            raise
        return temporary

    def _open_new(self, path: Path) -> int:
        # Somebody may remove a folder as empty between our making it and our first file in it: hence the tries.
        for _ in range(_FOLDER_TRIES):
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                _make_folder(path.parent)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return  # not empty, or gone: either way there is nothing left to tidy
            folder = folder.parent


def _make_folder(folder: Path) -> None:
    """Like makedirs, and fsync the parents, so that the way to a put object survives a crash too."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True, mode=0o755)
            _sync_folder(path.parent)
        except FileNotFoundError:
            return  # a parent was removed as empty just now; the caller tries again


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
