"""A store that is full: the run ends in words, nothing stays running, and it goes on once there is room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.process_tree import find_nodes

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root"),
]


@pytest.fixture
def small_store(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KiB where the runs' store lies."""
    folder = tmp_path / "store"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_store_ends_the_run_in_words_and_it_resumes_with_room(runs: Any, small_store: Path) -> None:
    ballast = small_store / "ballast"
    run_id = runs.start({"steps": 40})
    runs.node(run_id, attempt=1, step=5)
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 1024)
        except OSError:
            pass
    events = runs.follow(run_id)
    end = events[-1]
    assert end.kind == "end"
    assert end.fields["exit_code"] == 3
    assert "no space or quota left" in end.fields["words"]
    assert f"alpaca-jobs resume {run_id}" in end.fields["words"]
    assert not [node for node in find_nodes() if node.run_id == run_id]
    ballast.unlink()
    runs.resume(run_id, {"steps": 40})
    assert runs.follow(run_id)[-1].fields["exit_code"] == 0
