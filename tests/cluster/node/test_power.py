"""Turning a machine off, with commands of the test's own in the place of `shutdown` and `sudo`."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import psutil
import pytest

from cluster.node import power


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `shutdown` was called with, one line a call; `sudo` runs what it is told to."""
    log = tmp_path / "said"
    for name, script in (("shutdown", f'echo "$@" >> {log}'), ("sudo", 'shift; exec "$@"')):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return log


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_operating_system_is_asked_and_keeps_it_in_mind(
    said: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert power.power_off()
    assert power.power_off(in_minutes=10)
    power.stay_on()
    now, later, back = said.read_text().splitlines()
    assert now.startswith("-h now alpaca-jobs")
    assert later.startswith("-h +10 alpaca-jobs")
    assert back == "-c"


def test_where_nothing_can_be_turned_off_it_is_said_and_nothing_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert not power.power_off()
    refusing = tmp_path / "shutdown"
    refusing.write_text("#!/bin/sh\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not power.power_off()
    assert "shutdown -h now" in caplog.text


def test_a_machine_is_as_old_as_its_first_process() -> None:
    assert power.started_at_s() == psutil.Process(1).create_time()
    assert power.started_at_s() < time.time()
