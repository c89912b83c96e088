"""gs:// and az:// through gcsfs and adlfs, whose mode="create" is a true conditional write.

Read in their sources: gcsfs 2026.10.1 sends ifGenerationMatch=0 with the upload, adlfs 2026.8.0 calls upload_blob with
overwrite=False, for which the Azure SDK sends If-None-Match: *. Generic fsspec offers no such thing, so no other file
system comes here; `Store.probe_put_once` still asks the store itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from checkpoints.store_errors import http_status, is_missing

DELETE_THREADS = 16
"""Objects that are deleted at a time: an old commit has thousands, each is a request, and a save waits for the last."""


class ConditionalFsspecDriver:
    """Objects below `root` ("bucket/prefix") of a file system whose `pipe_file(mode="create")` is conditional."""

    def __init__(self, connect: Callable[[], Any], protocol: str, root: str) -> None:
        self._connect = connect
        self._root = root.strip("/")
        self.uri = f"{protocol}://{self._root}"

    def write(self, key: str, data: bytes | memoryview) -> None:
        self._connect().pipe_file(self._path(key), bytes(data))

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._connect().pipe_file(self._path(key), data, mode="create")
        except FileExistsError:
            return False
        except Exception as exc:
            if http_status(exc) == 412:
                return False
            raise
        return True

    def read(self, key: str, start: int, length: int | None) -> bytes:
        end = None if length is None else start + length
        whole = start == 0 and end is None
        filesystem = self._connect()
        try:
            data: bytes = (
                filesystem.cat_file(self._path(key))
                if whole
                else filesystem.cat_file(self._path(key), start=start, end=end)
            )
        except Exception as exc:
            if http_status(exc) == 416:  # the object ends before `start`, which is an answer and no failure
                return b""
            raise
        return data

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        data = self.read(key, start, len(view))
        view[: len(data)] = data
        return len(data)

    def size(self, key: str) -> int | None:
        try:
            info = self._connect().info(self._path(key), refresh=True)
        except Exception as exc:
            if is_missing(exc):
                return None
            raise
        return int(info["size"]) if info["type"] == "file" else None

    def list(self, prefix: str) -> list[str]:
        filesystem = self._connect()
        filesystem.invalidate_cache()
        folder = prefix.rpartition("/")[0]
        try:
            paths = filesystem.find(self._path(folder) if folder else self._root)
        except FileNotFoundError:
            return []
        keys = [path[len(self._root) + 1 :] for path in paths]
        return [key for key in keys if key.startswith(prefix)]

    def delete(self, keys: Sequence[str]) -> None:
        filesystem = self._connect()

        def remove(key: str) -> None:
            try:
                filesystem.rm_file(self._path(key))
            except Exception as exc:
                if not is_missing(exc):
                    raise

        with ThreadPoolExecutor(DELETE_THREADS, thread_name_prefix="delete") as pool:
            for _ in pool.map(remove, keys):
                pass

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool]) -> int:
        return 0  # both services drop uploads that were never finished after a week, by themselves

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"
