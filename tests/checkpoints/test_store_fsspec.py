"""gs:// and az://: what gcsfs and adlfs answer becomes what the rest expects; az:// against Microsoft's own emulator.

Without the emulator (azurite) and adlfs, which .ci/s3_servers.sh installs, the tests that need them are skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3_server import INSTALLED, free_port, program, running, wait_until_it_answers

from checkpoints.attempts import AttemptLog
from checkpoints.errors import AlreadyExists, Damaged, ObjectMissing, StorePermission, StoreUnreachable
from checkpoints.keys import TRAIN_ONLY, CommitRef
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Retries, Store
from checkpoints.store_fsspec import ConditionalFsspecDriver
from checkpoints.writer import CommitWriter

NO_WAITS = Retries(tries=3, sleep=lambda seconds: None)
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The one account that azurite knows, and its published key. Source: learn.microsoft.com, Use the Azurite emulator."""


class HttpError(Exception):
    """As gcsfs.retry.HttpError carries it: `code` is the status."""

    def __init__(self, code: int) -> None:
        super().__init__(f"said {code}")
        self.code = code


class HttpResponseError(Exception):
    """As azure.core.exceptions.HttpResponseError carries it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"said {status_code}")
        self.status_code = status_code


class ProxyError(OSError):
    """As requests.exceptions.ProxyError, which gcsfs raises for a 502."""


class Library:
    """A file system whose every call raises what the library raises, and counts."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            self.calls += 1
            raise self.error

        return call


def failing(error: Exception) -> tuple[Store, Library]:
    library = Library(error)
    return Store(ConditionalFsspecDriver(lambda: library, "gs", "bucket/runs"), retries=NO_WAITS), library


@pytest.mark.parametrize("error", [HttpError(416), HttpResponseError(416)])
def test_reading_beyond_the_end_gives_fewer_bytes(error: Exception) -> None:
    store, _ = failing(error)
    assert store.get_range("a", 20, 10) == b""
    assert store.get_into("a", 20, memoryview(bytearray(4))) == 0


@pytest.mark.parametrize(
    ("error", "wanted", "calls"),
    [
        (OSError("Forbidden: https://storage.googleapis.com/b/o\nno access"), StorePermission, 1),
        (HttpError(401), StorePermission, 1),
        (HttpResponseError(403), StorePermission, 1),
        (ProxyError(), StoreUnreachable, 3),
        (HttpError(503), StoreUnreachable, 3),
        (HttpResponseError(429), StoreUnreachable, 3),
        (FileNotFoundError("b/a"), ObjectMissing, 1),
    ],
)
def test_each_librarys_errors_are_told_apart(error: Exception, wanted: type[Exception], calls: int) -> None:
    store, library = failing(error)
    with pytest.raises(wanted):
        store.get("a")
    assert library.calls == calls


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """storage_options of azurite on this machine, with the container `bucket`."""
    script, node = program("azurite", "azurite/node_modules/azurite/dist/src/blob/main.js"), program("node")
    packages = str(INSTALLED / "adlfs")
    sys.path.append(packages)  # behind the environment's own: only what that lacks comes from here
    try:
        pytest.importorskip("adlfs", reason="adlfs is not installed: .ci/s3_servers.sh brings it")
        import fsspec

        folder, port = tmp_path_factory.mktemp("azurite"), free_port()
        address = f"http://127.0.0.1:{port}/{ACCOUNT}"
        parts = (
            "DefaultEndpointsProtocol=http",
            f"AccountName={ACCOUNT}",
            f"AccountKey={KEY}",
            f"BlobEndpoint={address}",
        )
        options = {"connection_string": ";".join(parts)}
        command = [node, script, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
        command += ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
        with running(command, folder) as process:
            wait_until_it_answers(address, process, folder)
            fsspec.filesystem("abfs", **options, use_listings_cache=False).mkdir("bucket")
            yield options
    finally:
        sys.path.remove(packages)


@pytest.fixture
def blobs(azure: dict[str, str], request: pytest.FixtureRequest) -> Store:
    """An empty store in it."""
    name = f"az://bucket/{abs(hash(request.node.name))}"
    return Store.open(name, storage_options=azure, retries=NO_WAITS)


@pytest.mark.slow
def test_azure_blobs_keep_the_contract_of_a_store(blobs: Store) -> None:
    blobs.put("a/b", b"0123456789")
    blobs.put("empty", b"")
    assert (blobs.get("a/b"), blobs.get("empty")) == (b"0123456789", b"")
    ranges = [blobs.get_range("a/b", start, 5) for start in (2, 8, 10, 20)]
    assert ranges == [b"23456", b"89", b"", b""]
    assert blobs.get_range("empty", 0, 5) == b""
    assert (blobs.size("a/b"), blobs.size("a"), blobs.size("none")) == (10, None, None)
    assert (blobs.list(), blobs.list("a/"), blobs.list("x/")) == (["a/b", "empty"], ["a/b"], [])
    with pytest.raises(ObjectMissing):
        blobs.get("none")
    blobs.delete(["a/b", "none"])
    assert blobs.list() == ["empty"]
    blobs.probe_put_once()


@pytest.mark.slow
def test_of_many_writers_of_a_blob_exactly_one_wins(blobs: Store) -> None:
    def race(number: int) -> bool:
        try:
            AttemptLog(blobs, TRAIN_ONLY).claim(1 + number // 8, {"by": number})
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(200)))
    assert sum(won) == 25
    assert AttemptLog(blobs, TRAIN_ONLY).newest() == 25


@pytest.mark.slow
def test_a_truncated_blob_is_damage_and_a_wrong_key_is_no_permission(blobs: Store, azure: dict[str, str]) -> None:
    writer = CommitWriter(blobs, TRAIN_ONLY, ref := CommitRef("train", 10, 1))
    writer.put("own", b"0123456789", cuts=[5])
    writer.publish(meta={})
    CommitReader.open(blobs, TRAIN_ONLY, list_commits(blobs, TRAIN_ONLY)[0]).verify()
    blobs.put(f"{TRAIN_ONLY.commit_prefix(ref)}own", b"012")
    with pytest.raises(Damaged, match=r"only \d bytes are there"):
        CommitReader.open(blobs, TRAIN_ONLY, ref).read_range("own", 6, 2)
    wrong = {"connection_string": azure["connection_string"].replace(KEY, "AAAA" + KEY[4:])}
    with pytest.raises(StorePermission):
        Store.open("az://bucket/other", storage_options=wrong, retries=NO_WAITS).get("a")
