"""memory:// : fsspec's in-process store under one lock; for tests and trials. Other processes see nothing of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

_LOCK = threading.RLock()  # fsspec's memory files share one read position, and check-then-write has to be one step


class MemoryDriver:
    """Objects in fsspec's process-wide memory file system."""

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = "/" + root.strip("/")
        self.uri = f"memory:/{self._root}"

    def write(self, key: str, data: bytes | memoryview) -> None:
        with _LOCK:
            self._filesystem.pipe_file(self._path(key), bytes(data))

    def create(self, key: str, data: bytes) -> bool:
        with _LOCK:
            if self._path(key) in self._filesystem.store:
                return False
            self._filesystem.pipe_file(self._path(key), data)
            return True

    def read(self, key: str, start: int, length: int | None) -> bytes:
        with _LOCK:
            file = self._filesystem.store.get(self._path(key))
            if file is None:
                raise FileNotFoundError(key)
            value: bytes = file.getvalue()
        return value[start : None if length is None else start + length]

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        data = self.read(key, start, len(view))
        view[: len(data)] = data
        return len(data)

    def size(self, key: str) -> int | None:
        with _LOCK:
            file = self._filesystem.store.get(self._path(key))
            return None if file is None else len(file.getvalue())

    def list(self, prefix: str) -> list[str]:
        start = self._path("")
        with _LOCK:
            keys = [path[len(start) :] for path in self._filesystem.store if path.startswith(start)]
        return [key for key in keys if key.startswith(prefix)]

    def delete(self, keys: Sequence[str]) -> None:
        with _LOCK:
            for key in keys:
                self._filesystem.store.pop(self._path(key), None)

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool]) -> int:
        return 0  # a put is one assignment here

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"
