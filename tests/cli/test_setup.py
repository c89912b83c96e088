"""`alpaca-jobs setup` and `doctor` as a script meets them: JSON, exit codes, and nothing changed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]


def nobody(folder: Path) -> dict[str, str]:
    """The environment of somebody who is signed in nowhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return kept | {"HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}


def test_without_a_terminal_setup_is_a_checklist_that_changes_nothing(run_cli: Cli, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    shown = run_cli("setup", "--job", str(job), "--no-sky-check", "--json", env=nobody(tmp_path))
    assert shown.returncode == 3
    body = json.loads(shown.stdout)
    assert body["ready"] is False
    states = {step["name"]: step["state"] for step in body["steps"]}
    assert (states["credentials of aws"], states["job"]) == ("todo", "todo")
    assert not job.exists()


def test_setup_refuses_a_cloud_it_does_not_know(run_cli: Cli, tmp_path: Path) -> None:
    shown = run_cli("setup", "--infra", "mars", env=nobody(tmp_path))
    assert shown.returncode == 2
    assert "--infra is mars, but aws, gcp, azure are wanted" in shown.stderr


def test_doctor_is_content_with_a_machine_that_uses_no_cloud(run_cli: Cli, tmp_path: Path) -> None:
    shown = run_cli("doctor", "--json", env=nobody(tmp_path), timeout=120)
    assert shown.returncode == 0, shown.stdout
    levels = {one["level"] for one in json.loads(shown.stdout)["findings"]}
    assert not levels & {"broken", "billing"}
