"""`plugin` shows what it would change and asks; looking changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    settings = tmp_path / "plugins.yaml"
    settings.write_text("plugins:\n- class: their.plugin.Class\n")
    return {**os.environ, "SKYPILOT_SERVER_PLUGINS_CONFIG": str(settings)}


def test_status_says_what_is_there_and_changes_nothing(run_cli: Cli, environ: dict[str, str]) -> None:
    settings = Path(environ["SKYPILOT_SERVER_PLUGINS_CONFIG"])
    before = settings.read_text()
    shown = json.loads(run_cli("plugin", "status", "--json", env=environ).stdout)
    assert (shown["is_installed"], shown["is_listed"], shown["others"]) == (False, False, ["their.plugin.Class"])
    assert "not installed: alpaca-jobs plugin install" in run_cli("plugin", "status", env=environ).stdout
    assert settings.read_text() == before


def test_installing_shows_both_files_and_wants_a_yes(run_cli: Cli, environ: dict[str, str]) -> None:
    settings = Path(environ["SKYPILOT_SERVER_PLUGINS_CONFIG"])
    before = settings.read_text()
    refused = run_cli("plugin", "install", env=environ)
    assert refused.returncode == 2
    assert "plugins.yaml" in refused.stderr
    assert "alpaca_jobs_skypilot_plugin" in refused.stderr
    assert "their.plugin.Class" in refused.stderr
    assert "Add --yes" in refused.stderr
    assert settings.read_text() == before


def test_removing_what_is_not_there_says_so(run_cli: Cli, environ: dict[str, str]) -> None:
    done = run_cli("plugin", "remove", "--yes", env=environ)
    assert done.returncode == 0
    assert "It is not installed; nothing was changed." in done.stderr
