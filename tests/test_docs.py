"""The papers tell the truth: links lead somewhere, commands exist, what is shown runs, the tree of files is current."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli import main

REPO = Path(__file__).resolve().parent.parent
PAPERS = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (REPO / "docs").glob("*.md")
)
NAMES = {name for name, _, _ in main.COMMANDS}
VERBS = {name.split()[0] for name in NAMES}

each_paper = pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)


def _anchors(paper: Path) -> set[str]:
    """The anchors that headings get, the way forges make them."""
    headings = re.findall(r"^#+ (.+)$", paper.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_paper
def test_links_lead_to_files_and_headings_that_exist(paper: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", paper.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue  # tests stay on this machine
        name, _, anchor = target.partition("#")
        file = (paper.parent / name) if name else paper
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert not broken


@each_paper
def test_commands_and_make_targets_that_are_named_exist(paper: Path) -> None:
    text = paper.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)(?:\.venv/bin/)?alpaca-jobs ([a-z]+(?: [a-z]+)?)", text, re.MULTILINE))
    assert {name for name in named if name not in NAMES and name.split()[0] not in VERBS - set(main.GROUPS)} == set()
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) - targets == set()


def test_readme_names_every_command() -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    named = re.findall(rf"^\| `alpaca-jobs ((?:{'|'.join(main.GROUPS)}) [a-z]+|[a-z]+)", readme, re.MULTILINE)
    assert set(named) == NAMES


def test_every_stop_reason_is_explained() -> None:
    from cluster.recovery import StopReason

    explained = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", (REPO / "docs/RECOVERY.md").read_text(), re.M))
    )
    assert sorted(explained) == sorted(reason.value for reason in StopReason)


def test_the_readmes_tree_is_todays() -> None:
    checked = subprocess.run([sys.executable, ".ci/tree.py", "--check"], cwd=REPO, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def _runnable_commands() -> list[str]:
    """Lines of the blocks under a `<!-- runs -->` mark, without their comments."""
    blocks = re.findall(r"<!-- runs -->\n```\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.process
def test_the_readmes_commands_run_one_after_the_other(tmp_path: Path) -> None:
    commands = _runnable_commands()
    assert commands
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_makefile_target_says_what_it_does() -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    assert [line for line in re.findall(r"^[a-z]+:.*$", makefile, re.MULTILINE) if "## " not in line] == []


def test_no_file_of_the_project_names_a_place_to_fetch_packages_from() -> None:
    """The lock holds pins and no addresses: which index to use is each machine's own business."""
    for name in ("requirements.lock", "pyproject.toml", "Makefile"):
        assert "://" not in (REPO / name).read_text(encoding="utf-8"), name
