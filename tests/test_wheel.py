"""The wheel: what is in it, and that its base install stands on its own feet, without torch, ray or SkyPilot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ABSENT_FROM_BASE = ("torch", "ray", "skypilot", "transformers", "openai", "deepspeed")
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built with what is installed (no network)."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(repo_root)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_has_the_four_rooms_and_nothing_else_on_top(names: set[str]) -> None:
    """A top-level `sky` would shadow SkyPilot; `tests` or `benchmarks` would land in everybody's site-packages."""
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"checkpoints", "alpaca_jobs", "cluster", "cli"}


def test_wheel_carries_types_examples_and_seed_tasks(names: set[str]) -> None:
    wanted = {f"{room}/py.typed" for room in ("checkpoints", "alpaca_jobs", "cluster", "cli")}
    wanted |= {
        f"alpaca_jobs/examples/{name}.yaml" for name in ("demo", "alpaca-7b", "alpaca-lora", "vicuna-7b", "zh-pretrain")
    }
    assert wanted - names == set()
    assert [name for name in names if name.startswith("alpaca_jobs/") and name.endswith("seed_tasks.jsonl")]


def test_wheel_holds_every_template_of_the_checkout(names: set[str], repo_root: Path) -> None:
    templates = {f"cluster/_templates/{path.name}" for path in (repo_root / "sky").iterdir()}
    assert templates - names == set()


def test_wheel_holds_no_leftovers(names: set[str]) -> None:
    assert not [name for name in names if re.search(r"__pycache__|\.pyc$|\.log$|\.pid$", name)]


def test_wheel_says_which_licence_it_has(wheel: Path, names: set[str]) -> None:
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()


@pytest.fixture(scope="session")
def bare(wheel: Path, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """`alpaca-jobs` from the wheel in an environment with the base dependencies only, pinned by the lock.

    uv takes the packages from its cache, which `make venv` filled: where tests run, the network may be closed. Only
    where that cache was cleared in between it asks the index, as make does.
    """
    venv = tmp_path_factory.mktemp("bare") / "venv"
    install = (
        '. .ci/pip_settings.sh && use_pip_settings "$1" && '
        '"$2/uv" venv --quiet --python "$1" "$3" && '
        'set -- "$2/uv" pip install --quiet --python "$3/bin/python" --constraint requirements.lock "$4" && '
        '{ "$@" --offline || "$@"; }'
    )
    bin_folder = Path(sys.executable).parent
    command = ["bash", "-euc", install, "bash", sys.executable, str(bin_folder), str(venv), str(wheel)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONWARNINGS": "error", **settings}
        return subprocess.run(
            [str(venv / "bin" / arguments[0]), *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=venv.parent,
        )

    return run


def test_base_install_brings_nothing_heavy(bare: Cli) -> None:
    program = "import importlib.metadata as m; print(*(d.metadata['Name'].lower() for d in m.distributions()))"
    installed = bare("python", "-c", program).stdout.split()
    assert "alpaca-jobs" in installed
    assert [name for name in ABSENT_FROM_BASE if name in installed] == []


def test_base_install_shows_help_and_version(bare: Cli) -> None:
    helped = bare("alpaca-jobs", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "launch" in helped.stdout
    assert re.match(r"\d+\.\d+", bare("alpaca-jobs", "--version").stdout)


def test_base_install_writes_and_checks_a_job(bare: Cli, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    written = bare("alpaca-jobs", "init", str(job))
    assert written.returncode == 0, written.stderr
    checked = bare("alpaca-jobs", "validate", str(job))
    assert checked.returncode == 0, checked.stderr


def test_base_install_answers_a_launch_with_the_pip_line(bare: Cli, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    bare("alpaca-jobs", "init", str(job))
    launched = bare("alpaca-jobs", "launch", str(job), "--yes", ALPACA_JOBS_HOME=str(tmp_path / "home"))
    assert launched.returncode == 3
    assert "pip install 'alpaca-jobs[node]'" in launched.stderr
    assert "Traceback" not in launched.stderr
