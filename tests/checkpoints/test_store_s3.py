"""What is S3's own in the S3 driver: bodies that are no copies, and checksums that the store compares."""

from __future__ import annotations

import gc
import io
import os
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from zlib import crc32

import pytest

from checkpoints.store import Store
from checkpoints.store_body import ViewFile
from checkpoints.store_s3 import PART_BYTES

DATA = bytes(range(256)) * 20


@pytest.mark.parametrize("steps", [[-1], [100, -1], [0, 7, 7, 9999], [None]])
def test_a_view_file_reads_like_a_true_one(steps: list[Any]) -> None:
    mine, true = ViewFile(memoryview(DATA)), io.BytesIO(DATA)
    for size in steps:
        assert mine.read(size) == true.read(size)
        assert mine.tell() == true.tell()
    for offset, whence in ((5, os.SEEK_SET), (-3, os.SEEK_END), (1, os.SEEK_CUR), (9999, os.SEEK_SET)):
        assert mine.seek(offset, whence) == true.seek(offset, whence)
        assert mine.read(4) == true.read(4)
    with mine.getbuffer() as buffer:
        assert buffer == DATA
    assert mine.getvalue() == DATA  # after the buffer was let go of


@pytest.mark.process
@pytest.mark.parametrize(("verb", "size"), [("PutObject", 5000), ("UploadPart", 2 * PART_BYTES + 1)])
def test_s3_is_told_the_checksum_of_what_shall_arrive(make_store: Callable[[str], Store], verb: str, size: int) -> None:
    store, told = make_store("s3"), []
    data = (DATA * (size // len(DATA) + 1))[:size]
    driver: Any = store._driver
    client = driver._run(driver._fs().set_session)
    note = lambda request, **_: told.append(request.headers["x-amz-checksum-crc32"])  # noqa: E731
    client.meta.events.register(f"before-send.s3.{verb}", note, unique_id="note")
    store.put("a", data)
    client.meta.events.unregister(f"before-send.s3.{verb}", unique_id="note")
    parts = [data] if verb == "PutObject" else [data[at : at + PART_BYTES] for at in range(0, size, PART_BYTES)]
    wanted = [b64encode(crc32(part).to_bytes(4, "big")) for part in parts]
    assert sorted(value if isinstance(value, bytes) else value.encode() for value in told) == sorted(wanted)
    assert store.get("a") == data


@pytest.mark.process
def test_a_store_that_knows_no_checksums_is_sent_none(s3_options: dict[str, str]) -> None:
    options = {**s3_options, "config_kwargs": {"request_checksum_calculation": "when_required"}}
    store = Store.open("s3://bucket/no-checksums", storage_options=options)
    store.put("a", DATA)
    assert _checksums(store, "a") == set()


@pytest.mark.process
def test_a_child_leaves_the_sockets_of_the_parents_other_stores_alone(s3_options: dict[str, str]) -> None:
    first = Store.open("s3://bucket/one", storage_options=s3_options)
    options = {**s3_options, "config_kwargs": {"read_timeout": 20}}
    other = Store.open("s3://bucket/two", storage_options=options)
    first.put("a", b"1")
    other.put("a", b"2")
    del other
    gc.collect()  # now fsspec's cache alone holds the other client, and a child empties that cache
    pid = os.fork()
    if pid == 0:
        first.get("a")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    again = Store.open("s3://bucket/two", storage_options=options)
    assert again.get("a") == b"2"


def _checksums(store: Store, key: str) -> set[str]:
    driver: Any = store._driver
    answer = driver._call("head_object", Key=driver._key(f"{store._prefix}{key}"), ChecksumMode="ENABLED")
    return {name for name in answer if name.startswith("Checksum") and name != "ChecksumType"}
