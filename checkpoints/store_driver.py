"""Driver: the eight verbs that differ from store to store. `Store` adds retries, put_once, words; drivers add nothing.

A driver may raise what its library raises; `store_errors.translate` turns that into this package's errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Driver(Protocol):
    """Keys are relative, with `/` between segments. All verbs may be called from several threads at once."""

    uri: str
    """Where the root lies, without credentials."""

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Put `data` under `key`, replacing what is there; readers see all of it or nothing of it."""
        ...

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` under `key` unless something is there; True if it was put, False if it was refused.

        Any exception means that the outcome is unknown.
        """
        ...

    def read(self, key: str, start: int, length: int | None) -> bytes:
        """Bytes `start` to `start + length` (None: to the end), fewer where the object ends earlier.

        Raises:
            FileNotFoundError: (or the library's equivalent) nothing is there.
        """
        ...

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        """Fill `view` with the bytes from `start` on; how many there were: fewer where the object ends earlier.

        Raises:
            FileNotFoundError: as for `read`; whatever is raised, `view` may be partly overwritten.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes under `key`; None when nothing is there."""
        ...

    def list(self, prefix: str) -> list[str]:
        """All keys that start with `prefix`, as the store has them now: never from a cache. Order does not matter."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the keys; one that is not there is no error."""
        ...

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool]) -> int:
        """Throw away uploads below `prefix` that never finished and whose key is `wanted`; how many there were."""
        ...
