"""A file's bytes without reading them: what is sent from them comes into memory as it is sent."""

from __future__ import annotations

import mmap
import os
from typing import IO


def map_file(file: IO[bytes]) -> memoryview:
    """The bytes of an open file, mapped; the file may be closed afterwards.

    Nobody closes the mapping: it goes with the last view of it, which a thread may hold a moment longer than its work.
    """
    if not os.fstat(file.fileno()).st_size:
        return memoryview(b"")  # nothing cannot be mapped
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
