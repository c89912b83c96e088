"""A training command: which programs it finds, and its last words, which are waited for, but not for ever."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest

from cluster.node import command_process
from cluster.node.command_process import COMMAND_ENVIRONMENT, CommandProcess, CommandSetup, command_programs


def ended(folder: Path, script: str) -> CommandProcess:
    command = CommandProcess(CommandSetup(("sh", "-c", script), folder, {}))
    while command.poll() is None:
        time.sleep(0.01)
    return command


def test_a_listener_that_is_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listen = CommandProcess._listen

    def late(self: CommandProcess, process: subprocess.Popen[bytes]) -> None:
        time.sleep(0.3)
        listen(self, process)

    monkeypatch.setattr(CommandProcess, "_listen", late)
    assert ended(tmp_path, "echo no luck; exit 3").last_words() == "no luck"
    assert ended(tmp_path, "exit 3").last_words() == "it printed nothing"


def test_what_it_left_running_does_not_hold_its_end_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_process, "_LISTEN_ON_S", 0.5)
    command = ended(tmp_path, "echo left; sleep 600 & exit 0")
    began = time.monotonic()
    assert command.last_words() == "left"
    assert time.monotonic() - began < 60
    command.kill()


def test_python_is_the_environments_that_was_made_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_programs(("trl",)) is None  # this machine made none: python is this process's own
    python = tmp_path / COMMAND_ENVIRONMENT / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho another one\n")
    python.chmod(0o755)
    assert command_programs(()) is None
    command = CommandProcess(CommandSetup(("python",), tmp_path, {}, programs=command_programs(("trl",))))
    while command.poll() is None:
        time.sleep(0.01)
    assert command.last_words() == "another one"


def test_what_moved_to_a_session_of_its_own_is_killed_with_it(tmp_path: Path) -> None:
    script = "setsid sh -c 'echo $$ > worker; exec sleep 600' & until [ -s worker ]; do sleep 0.05; done; exit 9"
    command = ended(tmp_path, script)
    worker = int((tmp_path / "worker").read_text())
    assert psutil.pid_exists(worker)  # as torchrun's workers are when torchrun is killed
    command.kill()
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE
