"""A real run with a real key: it reaches the teacher, and nothing else: no file, no log, no store, no command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_jobs.generation import offline_teacher
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL
from alpaca_jobs.generation.offline_teacher import OfflineTeacher
from cluster.node.ray_runtime import ray_folder
from cluster.process_tree import find_marked
from cluster.recovery import StopReason

KEY = "sk-walrus-7f3a91c2"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class KeyedTeacher(OfflineTeacher):
    """A server that notes the key each request came with."""

    def __init__(self) -> None:
        super().__init__(latency_s=0.05)
        self.RequestHandlerClass = _KeyedHandler
        self.keys: set[str] = set()


class _KeyedHandler(offline_teacher._Handler):
    server: KeyedTeacher

    def do_POST(self) -> None:
        """Note the key, then answer as always."""
        self.server.keys.add(str(self.headers.get("Authorization")))
        super().do_POST()


@pytest.fixture
def teacher() -> Iterator[KeyedTeacher]:
    with offline_teacher.running(KeyedTeacher()) as server:
        yield server


def test_a_key_reaches_the_teacher_and_no_file_log_store_or_command_line(
    bench: Any, teacher: KeyedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    url = f"http://127.0.0.1:{teacher.server_address[1]}/v1"
    asked = {
        "model": OFFLINE_MODEL, "base_url": url, "api_key_env": "TEACHER_KEY",
        "price_per_million_input_usd": 0.1, "price_per_million_output_usd": 0.1,
    }  # fmt: skip
    bench.create(
        data={"teacher": asked, "num_rows": 32}, train={"max_steps": 6}, secrets=["TEACHER_KEY"],
    )  # fmt: skip
    node = bench.start()
    bench.wait_reached(node, "train", 2)
    told = [line for process in find_marked(node.nonce) for line in _command_line(process)]
    ray = _holders(ray_folder(node.nonce))  # Ray's own logs and sockets, gone with the node
    assert bench.wait_exit(node) is StopReason.DONE
    assert teacher.keys == {f"Bearer {KEY}"}
    assert len(told) > 3
    assert not [line for line in told if KEY in line]
    assert ray == []
    assert _holders(bench.folder) == []


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _holders(folder: Path) -> list[Path]:
    """Files that hold the key."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert found, f"{folder} holds nothing, so nothing was looked at"
    return [path for path in found if KEY.encode() in path.read_bytes()]
