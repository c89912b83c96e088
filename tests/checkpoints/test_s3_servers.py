"""Real S3 servers: Ceph's gateway checks who asks; those without a put-once are found out, and nothing starts there.

The store contract itself runs on Ceph's gateway as one more kind of store: `store[radosgw]` in the other files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from checkpoints.errors import AlreadyExists, PutOnceUnsupported, StoreError, StorePermission
from checkpoints.store import Store

if TYPE_CHECKING:
    from s3_server import S3Server

pytestmark = pytest.mark.process


@pytest.fixture(scope="module", params=["rclone", "s3rver"])
def weak_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that accepts every put."""
    import weak_servers

    with getattr(weak_servers, request.param)(tmp_path_factory.mktemp(request.param)) as server:
        yield server


def test_a_server_that_ignores_the_condition_is_refused_in_words(weak_server: S3Server) -> None:
    store = Store.open("s3://bucket/probed", storage_options=weak_server.options)
    store.put("kept", b"1")
    with pytest.raises(
        PutOnceUnsupported, match=r"s3://bucket/probed: put-once does not hold here: a second put .*Use a store with"
    ):
        store.probe_put_once()
    assert store.list() == ["kept"], "the probe left something behind"


def test_launch_on_such_a_server_says_why_and_starts_nothing(
    weak_server: S3Server, run_cli: Any, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text('[{"instruction": "Say hello.", "input": "", "output": "Hello."}]', encoding="utf-8")
    job = tmp_path / "job.yaml"
    job.write_text(
        json.dumps(
            {
                "name": "refused",
                "store": "s3://bucket/runs",
                "data": {"from": str(rows)},
                "train": {"model": "tiny-llama"},
                "compute": {"workers": 1},
            }
        ),
        encoding="utf-8",
    )
    launched = run_cli("launch", str(job), "--yes", "--detach", env={**os.environ, **weak_server.environ})
    assert launched.returncode == 3, launched.stderr
    assert launched.stdout == ""
    assert "put-once does not hold here" in launched.stderr
    assert "nothing is started" in launched.stderr
    assert "Traceback" not in launched.stderr
    assert weak_server.secret not in launched.stderr
    assert Store.open("s3://bucket/runs", storage_options=weak_server.options).list() == []


@pytest.mark.slow
class TestCephChecksWhoAsks:
    @pytest.mark.parametrize(
        "wrong", [{"secret": "wrong-secret-value"}, {"key": "nobody", "secret": "wrong-secret-value"}]
    )
    def test_wrong_credentials_are_a_permission_problem_and_are_not_repeated(
        self, radosgw_server: S3Server, wrong: dict[str, str]
    ) -> None:
        store = Store.open("s3://bucket/locked", storage_options={**radosgw_server.options, **wrong})
        attempts: list[Callable[[], Any]] = [
            lambda: store.put("a", b"1"),
            lambda: store.put_once("a", {}),
            lambda: store.get("a"),
            lambda: store.size("a"),
            lambda: store.list(),
            lambda: store.delete(["a"]),
            store.probe_put_once,
        ]
        for attempt in attempts:
            with pytest.raises(StorePermission, match="Check the credentials in use") as caught:
                attempt()
            assert "s3://bucket/locked" in str(caught.value)
            assert "wrong-secret-value" not in str(caught.value)
            assert radosgw_server.secret not in str(caught.value)

    def test_a_bucket_that_is_not_there_is_named(self, radosgw_server: S3Server) -> None:
        store = Store.open("s3://no-such-bucket/run", storage_options=radosgw_server.options)
        with pytest.raises(StoreError, match="there is no such bucket"):
            store.list()

    def test_what_the_library_itself_makes_of_a_refusal_is_read_as_one(self, radosgw_server: S3Server) -> None:
        """s3fs says OSError(EINVAL) here and FileExistsError elsewhere: only the HTTP status is the same."""
        store = Store.open("s3://bucket/refusal", storage_options=radosgw_server.options)
        assert store._driver.create("once", b"first")
        assert not store._driver.create("once", b"second")
        with pytest.raises(AlreadyExists):
            store.put_once("once", {})
        assert store.get("once") == b"first"
