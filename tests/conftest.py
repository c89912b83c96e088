"""What holds for every test: a closed network, a home of its own, no model hub, and nothing left running."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

SESSION_MARK = "ALPACA_JOBS_TEST_SESSION"
"""Every process a test starts inherits this variable, so that one left behind can be found, and only ours."""

# Set while this file is imported, before any library that reads them is: Hugging Face decides at import time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"  # threads that spin for each other make tiny models many times slower
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
os.environ[SESSION_MARK] = f"{os.getpid()}-{time.time_ns()}"
# Where a shell forbids bytecode, every worker would rewrite every assert, and every process that a test starts compile
# the four rooms, each time anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say how often the kill tests kill; the long counts are for a night, not for every commit."""
    parser.addoption("--row-kills", type=int, default=8, help="kills of the row generation (issue 5 asks for 50)")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What importing all tests makes stays to the end: looking through it for garbage is work for nothing."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, what this machine cannot run; where CI is true, only GPUs may be missing."""
    if item.get_closest_marker("gpu") and (reason := _missing_gpu()):
        pytest.skip(reason)
    if item.get_closest_marker("cloud") and (reason := _missing_cloud()):
        skip_but_not_in_ci(reason)


def skip_but_not_in_ci(reason: str) -> NoReturn:
    """Skip a test for what this machine lacks. In CI (CI=true) the test fails: nothing may stop being shown unseen."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI is true, so that this is no reason to skip)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def cannot_run() -> Callable[[str], NoReturn]:
    """Ends a test for what this machine lacks: skipped, but failed in CI."""
    return skip_but_not_in_ci


def _missing_gpu() -> str | None:
    return None if Path("/dev/nvidia0").exists() else "no NVIDIA GPU on this machine"


def _missing_cloud() -> str | None:
    if os.geteuid() != 0:
        return "the cloud in a box needs root"
    missing = [name for name in ("sshd", "sudo", "rsync", "nc", "ip") if shutil.which(name, path=_SBIN_PATH) is None]
    return f"the cloud in a box needs {', '.join(missing)}" if missing else None


_SBIN_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's runs, keys or clouds, and none leaves a run behind in a home."""
    monkeypatch.setenv("ALPACA_JOBS_HOME", str(tmp_path / "alpaca-jobs-home"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine, in this process; HF_HUB_OFFLINE covers the ones we start."""
    real_connect, real_connect_ex = socket.socket.connect, socket.socket.connect_ex

    def connect(self: socket.socket, address: Any) -> None:
        _refuse_outside(self, address)
        real_connect(self, address)

    def connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_outside(self, address)
        return real_connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect_ex)


def _refuse_outside(sock: socket.socket, address: Any) -> None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type & socket.SOCK_DGRAM:
        return  # a UDP "connect" sends nothing: ray asks the routing table for this machine's address that way
    host = str(address[0])
    try:
        address_is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback or host in _own_addresses()
    except ValueError:
        address_is_here = False
    if not address_is_here:
        raise ConnectionRefusedError(f"a test tried to reach {host}: tests may use localhost only (tests/conftest.py)")


def _own_addresses() -> set[str]:
    """This machine's own addresses: ray names its servers by them even when they serve this machine alone."""
    return {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout that is being tested."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def mixtral() -> dict[str, Any]:
    """config.json of Mixtral-8x7B: 46.7 B parameters, of which a token uses 12.9 B (arXiv:2401.04088, section 1)."""
    return {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """Fail the session when a process that a test started outlives it; say which, and end it."""
    yield
    mark = os.environ[SESSION_MARK]
    deadline = time.monotonic() + 5.0
    while (left := _marked_processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)  # what was told to stop may still be stopping; there is no event to wait for
    if not left:
        return
    lines = [_describe(process) for process in left]
    for process in left:
        _end(process)
    pytest.fail("processes started by tests were still running:\n" + "\n".join(lines))


def _marked_processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid() or _environment(process).get(SESSION_MARK) != mark:
            continue
        if not _is_ours_to_keep(process):
            found.append(process)
    return found


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return {}


def _is_ours_to_keep(process: psutil.Process) -> bool:
    """Python's own helper for shared memory lives as long as the process that asked for it: this one."""
    try:
        return process.ppid() == os.getpid() and "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


def _describe(process: psutil.Process) -> str:
    try:
        node = _environment(process).get("ALPACA_JOBS_NODE", "-")
        return f"  pid {process.pid} node {node}: {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"  pid {process.pid}: gone by now"


def _end(process: psutil.Process) -> None:
    try:
        process.kill()
        process.wait(timeout=5)
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return


@pytest.fixture(scope="session")
def run_cli(repo_root: Path) -> Any:
    """Run `alpaca-jobs ARGS` in a process of its own, as a user does; returns the CompletedProcess (text)."""
    command = Path(sys.executable).with_name("alpaca-jobs")

    def run(*args: str, timeout: float = 240, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(command), *args], capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, **kwargs
        )

    return run


@pytest.fixture(scope="session")
def run_ranks(repo_root: Path) -> Callable[..., list[tuple[str, str]]]:
    """Run one process for each command at the same time, to the end; returns what each said (stdout, stderr).

    When one fails or takes too long all are ended: a rank whose peers are gone waits for ever.
    """

    def run(commands: Sequence[Sequence[str]], *, timeout: float, **environ: str) -> list[tuple[str, str]]:
        with contextlib.ExitStack() as files:
            outputs = [[files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in commands]
            ranks = [
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=error, cwd=repo_root, env=os.environ | environ
                )
                for command, (out, error) in zip(commands, outputs, strict=True)
            ]
            try:
                give_up_at = time.monotonic() + timeout
                while any(rank.poll() is None for rank in ranks) and time.monotonic() < give_up_at:
                    if any(rank.returncode for rank in ranks):
                        give_up_at = min(give_up_at, time.monotonic() + 5)  # the others say what they have to say
                    time.sleep(0.1)
            finally:
                for rank in ranks:
                    rank.kill()
                    rank.wait()
            said = []
            for out, error in outputs:
                out.seek(0)
                error.seek(0)
                said.append((out.read(), error.read()))
        codes = [rank.returncode for rank in ranks]
        assert codes == [0] * len(ranks), "\n".join(f"{codes}\n{out[-3000:]}{error[-5000:]}" for out, error in said)
        return said

    return run


@pytest.fixture(scope="session")
def aws_server() -> Iterator[str]:
    """A pretend AWS (moto) in this process; its address."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(aws_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty pretend account that AWS's own settings point at, for this process and those it starts; its address."""
    urllib.request.urlopen(urllib.request.Request(f"{aws_server}/moto-api/reset", method="POST")).close()
    settings = {
        "AWS_ENDPOINT_URL": aws_server, "AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return aws_server
