"""The user's own training command as a process group: started, listened to, told to leave, ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alpaca_jobs.errors import CommandError
from checkpoints.given import PROGRESS_VARIABLE
from cluster.node.command_facts import parse_fact
from cluster.node.command_output import CommandOutput, read_lines
from cluster.node.ports import free_port
from cluster.process_tree import kill_marked, new_nonce

logger = logging.getLogger(__name__)

COMMAND_ENVIRONMENT: Final = "alpaca-jobs-command"
"""Folder below HOME: the environment that a cloud's machine makes for `train.install` (cluster/cloud/templates.py)."""
COMMAND_MARK: Final = "ALPACA_JOBS_COMMAND"
"""Every process of a command has it in its environment, whatever session it has moved to: torchrun's workers each lead
one of their own, and outlive a torchrun that is killed.
"""
_LISTEN_ON_S: Final = 3.0
"""How long its last words are waited for once it has ended; what it started may hold its output open for ever."""
_NOT_FOUND: Final = (126, 127)
"""What a shell exits with for a command that is not executable, or not there."""


@dataclass(frozen=True)
class CommandSetup:
    """What a command is started with.

    Attributes:
        argv: program and arguments.
        folder: its working folder.
        environ: what it finds in its environment beside this process's own.
        ranks: how often it is started; with more than one, each gets torchrun's variables.
        programs: where programs are looked for first; default: beside this process's own Python.
    """

    argv: tuple[str, ...]
    folder: Path
    environ: Mapping[str, str]
    ranks: int = 1
    programs: Path | None = None


class CommandProcess:
    """One or several processes of one command, each the leader of a group. What they print is logged, line by line."""

    def __init__(self, setup: CommandSetup) -> None:
        """Start them.

        Raises:
            CommandError: there is no such program.
        """
        self._setup = setup
        self.progress = setup.folder / "progress.jsonl"
        self._read_to = 0
        self._nonce = new_nonce()
        self._output = CommandOutput()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listeners: list[threading.Thread] = []
        port = free_port() if setup.ranks > 1 else 0
        for rank in range(setup.ranks):
            try:
                process = subprocess.Popen(
                    setup.argv, cwd=setup.folder, env=self._environ(rank, port), stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            except OSError as exc:
                self.kill()
                raise CommandError(
                    f"train.command starts with {setup.argv[0]}, which cannot be run here: {exc.strerror}. Name a "
                    "program that the machine has, or list it under train.files."
                ) from exc
            self._processes.append(process)
            listener = threading.Thread(target=self._listen, args=(process,), name=f"command-{rank}", daemon=True)
            self._listeners.append(listener)
            listener.start()

    def poll(self) -> int | None:
        """The exit status once all have ended: the first that is not 0, negative for a signal; None while one runs.

        A rank that failed takes the others with it: they would wait for it until a timeout.
        """
        codes = [process.poll() for process in self._processes]
        failed = next((code for code in codes if code), None)
        if None in codes:
            if failed:
                self.kill()
            return None
        return failed or 0

    def facts(self) -> list[dict[str, Any]]:
        """What the command has appended to its progress file since the last call; other lines are skipped."""
        try:
            with self.progress.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        return [fact for line in whole.splitlines() if (fact := parse_fact(line)) is not None]

    def terminate(self) -> None:
        """SIGTERM to every process of the command: it may save and leave."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to every process of the command, wherever it has moved to; its last words are logged. Idempotent.

        Raises:
            ClusterError: some are still there half a minute later.
        """
        self._signal(signal.SIGKILL)
        kill_marked(self._nonce, mark=COMMAND_MARK)
        for process in self._processes:
            process.wait()
        self._hear_out()
        self._output.close()

    def why(self, code: int) -> CommandError | None:
        """What is wrong with the command itself, if an exit status says so."""
        if code in _NOT_FOUND:
            return CommandError(f"train.command cannot be run: {self.last_words()} (exit status {code}).")
        return None

    def last_words(self) -> str:
        """What it said last of its end; of one that has ended, all of its output is read first."""
        if all(process.poll() is not None for process in self._processes):
            self._hear_out()
        return self._output.last_words() or "it printed nothing"

    def _hear_out(self) -> None:
        give_up_at = time.monotonic() + _LISTEN_ON_S
        for listener in self._listeners:
            listener.join(max(0.0, give_up_at - time.monotonic()))

    def _environ(self, rank: int, port: int) -> dict[str, str]:
        given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        given["PATH"] = (
            f"{self._setup.programs or Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
        )
        given["PYTHONUNBUFFERED"] = "1"
        if self._setup.ranks > 1:
            ranks = str(self._setup.ranks)
            given |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        given |= {PROGRESS_VARIABLE: str(self.progress), COMMAND_MARK: self._nonce}
        return {**given, **self._setup.environ}

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in read_lines(pipe):
                self._output.take(line)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                continue


def command_programs(packages: Sequence[str]) -> Path | None:
    """The programs of the environment that was made for these packages; None where none was made."""
    programs = Path.home() / COMMAND_ENVIRONMENT / "bin"
    return programs if packages and programs.is_dir() else None


def command_argv(command: str | Sequence[str]) -> tuple[str, ...]:
    """A list is run as it is; a text by the shell, which stops at the first command of a pipe or list that fails."""
    return ("/bin/sh", "-ec", command) if isinstance(command, str) else tuple(command)
