"""`alpaca-jobs --help` is quick, loads nothing heavy, and every command says what it does with an example."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from cli import main

pytestmark = pytest.mark.process

Cli = Callable[..., subprocess.CompletedProcess[str]]
HEAVY = ("torch", "ray", "sky", "transformers", "fsspec", "s3fs", "openai", "deepspeed", "pydantic", "numpy", "yaml")
MOST_MODULES = 420  # 372 on 2026-11-22, 325 of them Python's, typer's and rich's


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    program = (
        f"import json, sys; import cli.entry, cli.main; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(loaded.stdout) == []


def test_help_loads_little_and_nothing_heavy() -> None:
    """How long it takes is for benchmarks/cli.py to say (0.4 s of CPU is the aim): a clock in a test tells the load."""
    program = (
        "import json, sys, cli.main\n"
        "try: cli.main.app(['--help'])\n"
        f"except SystemExit: print(json.dumps([len(sys.modules), *(m for m in {HEAVY!r} if m in sys.modules)]))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    number, *heavy = json.loads(shown.stdout.splitlines()[-1])
    assert heavy == []
    assert number <= MOST_MODULES


@pytest.mark.parametrize("name", [name for name, _, _ in main.COMMANDS])
def test_every_command_has_help_with_an_example(run_cli: Cli, name: str) -> None:
    shown = run_cli(*name.split(), "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"Example: alpaca-jobs {name}" in shown.stdout


def test_the_commands_are_the_ones_promised() -> None:
    promised = [
        "init",
        "validate",
        "offers",
        "estimate",
        "launch",
        "runs",
        "status",
        "logs",
        "receipt",
        "cancel",
        "rm",
        "resume",
        "drill",
        "generate",
        "train",
        "export",
        "checkpoints ls",
        "checkpoints verify",
        "checkpoints prune",
        "checkpoints copy",
        "data dedupe",
        "data convert",
        "data card",
        "data clean",
        "data translate",
        "data preview",
        "weights diff",
        "weights recover",
        "setup",
        "doctor",
        "plugin install",
        "plugin status",
        "plugin remove",
    ]
    assert sorted(name for name, _, _ in main.COMMANDS) == sorted(promised)


def test_version_is_the_packages(run_cli: Cli) -> None:
    from importlib.metadata import version

    assert run_cli("--version").stdout.strip() == version("alpaca-jobs")


def test_shell_completion_knows_the_commands(run_cli: Cli) -> None:
    import os

    asked = {**os.environ, "_ALPACA_JOBS_COMPLETE": "complete_bash", "COMP_WORDS": "alpaca-jobs la", "COMP_CWORD": "1"}
    assert run_cli(env=asked).stdout.split() == ["launch"]


def test_unknown_command_is_wrong_input(run_cli: Cli) -> None:
    refused = run_cli("lunch")
    assert refused.returncode == 2
    assert "lunch" in refused.stderr
    assert refused.stdout == ""
