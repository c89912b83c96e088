"""Turning a machine off, with commands of the test's own in the place of `shutdown` and `sudo`."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import psutil
import pytest

from cluster.node import power
from cluster.node.power import AFTER_END_MIN, AFTER_LIMIT_MIN, HELD_MIN, SETUP_MIN, PowerSwitch, minutes_after
from cluster.recovery import StopReason


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
    now, later = said.read_text().splitlines()
    assert now.startswith("-h now alpaca-jobs")
    assert later.startswith("-h +10 alpaca-jobs")


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


class Wishes:
    """Takes what the operating system would be asked, in minutes."""

    def __init__(self, *, takes: bool = True) -> None:
        self.heard: list[int] = []
        self._takes = takes

    def __call__(self, minutes: int) -> bool:
        self.heard.append(minutes)
        return self._takes


def wait_for(heard: list[int], count: int) -> bool:
    give_up_at = time.monotonic() + 10
    while len(heard) < count and time.monotonic() < give_up_at:
        time.sleep(0.01)
    return len(heard) >= count


def test_while_it_is_held_the_end_is_put_off_and_a_node_that_hangs_puts_nothing_off() -> None:
    off = Wishes()
    switch = PowerSwitch(is_rented=True, off_in=off, put_off_every_s=0.05, held_for_s=0.3)
    switch.start()
    give_up_at = time.monotonic() + 10
    while len(off.heard) < 8 and time.monotonic() < give_up_at:
        switch.hold()
        time.sleep(0.01)
    assert set(off.heard) == {HELD_MIN}
    assert len(off.heard) == 8
    time.sleep(0.4)  # nobody holds it: what was asked for last is what comes
    heard = len(off.heard)
    time.sleep(0.3)
    assert len(off.heard) == heard
    switch.let_go()
    assert off.heard[heard:] == [0]
    switch.hold()
    time.sleep(0.2)
    assert off.heard[heard:] == [0]


def test_a_machine_that_is_not_rented_is_left_alone_and_one_that_cannot_be_turned_off_is_asked_once() -> None:
    own, stubborn = Wishes(), Wishes(takes=False)
    for off, is_rented in ((own, False), (stubborn, True)):
        switch = PowerSwitch(is_rented=is_rented, off_in=off, put_off_every_s=0.01)
        switch.start()
        switch.hold()
        time.sleep(0.2)
        assert len(off.heard) == int(is_rented)
        switch.let_go(in_minutes=3)
    assert own.heard == []
    assert stubborn.heard == [HELD_MIN, 3]


@pytest.mark.parametrize(("value", "asked"), [("yes", 1), ("", 0), (None, 1)])
def test_whether_it_is_rented_stands_in_the_tasks_environment(said: Path, value: str | None, asked: int) -> None:
    switch = PowerSwitch.of({} if value is None else {power.RENTED_VARIABLE: value})
    switch.let_go(in_minutes=2)
    assert (said.read_text().count("-h +2") if said.exists() else 0) == asked


def test_somebody_can_log_in_for_as_long_as_he_has_to() -> None:
    """systemd refuses logins in the last five minutes before a shutdown that was asked for."""
    most_s = HELD_MIN * 60 - power._PUT_OFF_EVERY_S - power._HELD_FOR_S
    assert most_s >= 10 * 60 - 1
    assert minutes_after(StopReason.BUDGET) == AFTER_LIMIT_MIN > 5
    assert minutes_after(StopReason.CRASHED) == AFTER_END_MIN
    assert SETUP_MIN > HELD_MIN


def test_a_machine_is_as_old_as_its_first_process() -> None:
    assert power.started_at_s() == psutil.Process(1).create_time()
    assert power.started_at_s() < time.time()
