"""The guards of conftest.py do guard: a closed network, a home per test, no process left behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

LEAKING_TEST = """
import subprocess, sys
def test_leaves_a_process_behind():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
"""

CANNOT_RUN_HERE = """
import sys
import pytest
sys.path.insert(0, {servers!r})
from s3_server import program

@pytest.fixture(scope="session")
def image(cannot_run):
    cannot_run("the image cannot be built")

def test_image(image):
    raise AssertionError("it ran")

def test_server():
    program("no-such-server")

@pytest.mark.cloud
def test_cloud():
    raise AssertionError("it ran")
"""


@pytest.mark.parametrize(("ci", "outcome"), [("true", "EFE"), ("", "sss")])
def test_what_a_machine_lacks_is_skipped_but_in_ci_it_fails(
    ci: str, outcome: str, repo_root: Path, tmp_path: Path
) -> None:
    shutil.copy(repo_root / "tests" / "conftest.py", tmp_path)
    servers = str(repo_root / "tests" / "checkpoints" / "s3_servers")
    (tmp_path / "test_lacking.py").write_text(CANNOT_RUN_HERE.format(servers=servers), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    environ = {**os.environ, "CI": ci, "PATH": str(tmp_path)}  # no program of the cloud in a box is there
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environ)
    assert outcome in ended.stdout, ended.stdout
    assert "it ran" not in ended.stdout
    assert "the image cannot be built" in ended.stdout


def test_connections_outside_this_machine_are_refused() -> None:
    with pytest.raises(ConnectionRefusedError, match="tests may use localhost only"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_connections_to_localhost_are_allowed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_every_test_has_a_home_of_its_own(tmp_path: Path) -> None:
    assert Path(os.environ["ALPACA_JOBS_HOME"]).is_relative_to(tmp_path)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_process_left_behind_fails_the_session_and_is_ended(repo_root: Path, tmp_path: Path) -> None:
    shutil.copy(repo_root / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_leak.py").write_text(LEAKING_TEST, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stdout
    assert "processes started by tests were still running" in ended.stdout
    assert "time.sleep(600)" in ended.stdout
