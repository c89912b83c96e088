"""The code's version: a checkout and its wheel agree, and every edit shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cluster.code_version import ROOMS, code_digest, code_version


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small tree in the shape of ours."""
    root = tmp_path / "checkout"
    for room in ROOMS:
        (root / room / "inner").mkdir(parents=True)
        (root / room / "a.py").write_text(f"# {room}\n")
        (root / room / "inner" / "b.py").write_text("x = 1\n")
    (root / "sky").mkdir()
    (root / "sky" / "task.yaml").write_text("name: x\n")
    return root


def test_version_is_the_packages_and_twelve_digits_of_content() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{12}", code_version())
    assert code_version() == code_version()


def test_wheel_and_checkout_agree(checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(checkout, installed)
    (installed / "sky").rename(installed / "cluster" / "_templates")
    (installed / "sky").mkdir()  # SkyPilot's own package, which is none of our business
    (installed / "sky" / "task.py").write_text("theirs\n")
    assert code_digest(installed) == code_digest(checkout)


@pytest.mark.parametrize("path", ["checkpoints/a.py", "cli/inner/b.py", "sky/task.yaml"])
def test_every_edit_shows(checkout: Path, path: str) -> None:
    before = code_digest(checkout)
    (checkout / path).write_text("changed\n")
    assert code_digest(checkout) != before


def test_moved_and_new_files_show(checkout: Path) -> None:
    before = code_digest(checkout)
    (checkout / "cli" / "a.py").rename(checkout / "cli" / "c.py")
    moved = code_digest(checkout)
    (checkout / "cli" / "empty.py").write_text("")
    assert len({before, moved, code_digest(checkout)}) == 3


def test_leftovers_do_not_count(checkout: Path) -> None:
    before = code_digest(checkout)
    (checkout / "cli" / "__pycache__").mkdir()
    (checkout / "cli" / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (checkout / "cli" / ".a.py.swp").write_bytes(b"x")
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_a.py").write_text("")
    assert code_digest(checkout) == before
