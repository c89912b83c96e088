"""ViewFile: bytes in memory as the file that an HTTP client wants, without a copy of them."""

from __future__ import annotations

import io
import os


class ViewFile(io.BytesIO):
    """A file that reads from `view`, which must not change until it is sent.

    s3fs's client takes bytes or a file, and of files it sends a BytesIO without a thread for each piece; a true BytesIO
    would hold a copy of the bytes, and its client makes another: here only the piece that is being sent is one.
    """

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view = view
        self._at = 0

    def read(self, size: int | None = -1, /) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        piece = bytes(self._view[self._at : end])
        self._at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._view)}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def getbuffer(self) -> memoryview:
        return memoryview(self._view)

    def getvalue(self) -> bytes:
        return bytes(self._view)
