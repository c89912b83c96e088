"""What is S3's own in the S3 driver: bodies that are no copies, and checksums that the store compares."""

from __future__ import annotations

import gc
import hashlib
import io
import os
from collections.abc import Callable
from typing import Any

import pytest

from checkpoints.store import Store
from checkpoints.store_body import ViewFile

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
def test_s3_is_given_the_digest_that_is_known(s3_options: dict[str, str], make_store: Callable[[str], Store]) -> None:
    store = make_store("s3")
    store.put("a", DATA, sha256=hashlib.sha256(DATA).hexdigest())
    store.put("b", DATA)
    assert store.get("a") == store.get("b") == DATA
    assert _checksums(store, "a") == {"ChecksumSHA256"}
    assert _checksums(store, "b") == {"ChecksumCRC32"}


@pytest.mark.process
def test_a_body_whose_digest_is_known_is_signed_with_it_and_not_hashed_again(
    make_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.auth

    store, hashed, signed = make_store("s3"), [], []
    driver: Any = store._driver
    client = driver._run(driver._fs().set_session)
    note = lambda request, **_: signed.append(request.headers["X-Amz-Content-SHA256"])  # noqa: E731
    client.meta.events.register("before-send.s3.PutObject", note, unique_id="note")
    true = botocore.auth.sha256

    class Counting:
        def __init__(self, data: bytes = b"") -> None:
            self._inner = true()
            self.update(data)

        def update(self, data: bytes) -> None:
            hashed.append(len(data))
            self._inner.update(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    monkeypatch.setattr(botocore.auth, "sha256", Counting)
    digest = hashlib.sha256(DATA).hexdigest()
    store.put("a", DATA, sha256=digest)
    assert max(hashed) < len(DATA), "only what is signed, which has the digest in it"
    store.put("a", DATA)
    assert max(hashed) == len(DATA)
    client.meta.events.unregister("before-send.s3.PutObject", unique_id="note")
    assert [header if isinstance(header, str) else header.decode() for header in signed] == [digest, digest]


@pytest.mark.process
def test_a_store_that_knows_no_checksums_is_sent_none(s3_options: dict[str, str]) -> None:
    options = {**s3_options, "config_kwargs": {"request_checksum_calculation": "when_required"}}
    store = Store.open("s3://bucket/no-checksums", storage_options=options)
    store.put("a", DATA, sha256=hashlib.sha256(DATA).hexdigest())
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
