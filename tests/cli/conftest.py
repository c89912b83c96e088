"""A job, and the command line in a process of its own with quick nodes (quick_runs.py)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkpoints.store import Store
from cluster.process_tree import find_nodes, kill_marked
from cluster.runs.home import Home
from cluster.runs.run_view import view_run

QUICK_RUNS = Path(__file__).with_name("quick_runs.py")
WARM_CLI = Path(__file__).with_name("warm_cli.py")


class WarmCli:
    """A process that has imported the command line (warm_cli.py), and runs commands forked from it."""

    def __init__(self, address: str) -> None:
        self._address = address

    def run(self, argv: list[str], *, cwd: Path, environ: dict[str, str], timeout_s: float) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of `quick_runs.py ARGV`; the two are read to their ends.

        Raises:
            TimeoutError: it, or what it started with these streams, is still there.
        """
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(timeout_s)
            connection.connect(self._address)
            pipes = [os.pipe(), os.pipe()]
            said: list[bytes] = [b"", b""]

            def read(place: int) -> None:
                with os.fdopen(pipes[place][0], "rb") as pipe:
                    said[place] = pipe.read()

            message = json.dumps({"argv": argv, "cwd": str(cwd), "environ": environ}).encode()
            socket.send_fds(connection, [message], [write_end for _, write_end in pipes])
            for _, write_end in pipes:
                os.close(write_end)
            readers = [threading.Thread(target=read, args=(place,), daemon=True) for place in range(2)]
            for reader in readers:
                reader.start()
            code = json.loads(connection.recv(100))
            for reader in readers:
                reader.join(timeout_s)
                if reader.is_alive():
                    raise TimeoutError(f"{argv}: something it started holds its streams open")
        return code, said[0].decode(), said[1].decode()


@pytest.fixture(scope="session")
def warm_cli() -> Iterator[WarmCli]:
    with tempfile.TemporaryDirectory(prefix="aj-cli-", dir="/tmp") as folder:  # short: a socket's path
        address = f"{folder}/socket"
        process = subprocess.Popen([sys.executable, str(WARM_CLI), address], stdin=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 60
        while not Path(address).exists() and process.poll() is None and time.monotonic() < give_up_at:
            time.sleep(0.05)
        try:
            yield WarmCli(address)
        finally:
            process.kill()
            process.wait()


@dataclass
class QuickCli:
    """Runs `alpaca-jobs ARGS` in a folder of its own, with nodes that behave as told."""

    folder: Path
    warm: WarmCli
    behaviour: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> str:
        return f"file://{self.folder}/runs"

    @property
    def home(self) -> Home:
        return Home.default()

    def job(self, **changes: Any) -> str:
        """A job file over one row, with the demo's other values."""
        rows = self.folder / "rows.json"
        rows.write_text('[{"instruction": "Say hello.", "input": "", "output": "Hello."}]', encoding="utf-8")
        body = {
            "name": "quick",
            "store": "file://./runs",
            "data": {"from": str(rows)},
            "train": {"model": "tiny-llama"},
            "compute": {"workers": 1},
            **changes,
        }
        path = self.folder / "job.yaml"
        path.write_text(json.dumps(body), encoding="utf-8")  # JSON is YAML
        return str(path)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, as a terminal would, so that Ctrl-C hits nothing else."""
        return subprocess.Popen(
            [sys.executable, str(QUICK_RUNS), json.dumps(self.behaviour), *args],
            cwd=self.folder,
            env={**os.environ, "QUICK_STARTED": str(self.folder / "started")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *args: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        argv = [str(QUICK_RUNS), json.dumps(self.behaviour), *args]
        ended = self.warm.run(argv, cwd=self.folder, environ=dict(os.environ), timeout_s=timeout_s)
        return subprocess.CompletedProcess(args, *ended)

    def launch(self, *args: str) -> str:
        """Launch the job detached; returns the run's id."""
        launched = self("launch", self.job(), "--yes", "--detach", *args)
        assert launched.returncode == 0, launched.stderr
        return launched.stdout.strip()

    def wait_until_over(self, run_id: str) -> None:
        self.wait_for(lambda: self.home.run(run_id).supervisor_pid() is None)

    def wait_for_step(self, run_id: str, step: int) -> None:
        """Wait until the run's nodes have told of this step: what `status` shows, without a process for each look."""
        self.wait_for(lambda: (view_run(Store.open(self.store), run_id, is_alive=True).step or 0) >= step)

    def wait_for(self, look: Any, timeout_s: float = 120.0) -> Any:
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            if found := look():
                return found
            time.sleep(0.05)
        pytest.fail(f"it did not come about within {timeout_s:.0f} s")

    def interrupt(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """Press Ctrl-C: SIGINT to the whole foreground group, as a terminal does."""
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def clean(self) -> None:
        ours = {folder.run_id for folder in self.home.runs()}
        for run_id in ours:
            if (pid := self.home.run(run_id).supervisor_pid()) is not None:
                psutil.Process(pid).kill()
        for node in find_nodes():
            if node.run_id in ours:
                kill_marked(node.nonce)


@pytest.fixture
def quick(tmp_path: Path, warm_cli: WarmCli, _home_of_its_own: None) -> Iterator[QuickCli]:
    cli = QuickCli(tmp_path, warm_cli, {"steps": 8, "step_s": 0.02, "save_every": 4})
    yield cli
    cli.clean()
