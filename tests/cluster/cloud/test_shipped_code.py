"""The wheel that a launch ships: the very code that runs, and what installing it says about itself."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.cloud.shipped_code import write_shipped_code
from cluster.code_version import code_digest, code_version

REPO = Path(__file__).resolve().parents[3]


def test_launches_at_the_same_moment_all_find_the_whole_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    with ThreadPoolExecutor(4) as pool:
        wheels = list(pool.map(lambda _: write_shipped_code(folder), range(8)))
    assert {wheel.read_bytes() for wheel in wheels} == {write_shipped_code(tmp_path / "alone").read_bytes()}
    assert sorted(path.name for path in folder.iterdir()) == [wheels[0].name, "constraints.txt"]


def test_the_wheel_holds_this_code_and_says_so_in_its_name(tmp_path: Path) -> None:
    wheel = write_shipped_code(tmp_path / "code")
    assert wheel.name == f"alpaca_jobs-{code_version()}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "there")
    assert code_digest(tmp_path / "there") == code_digest(REPO)
    assert (tmp_path / "code" / "constraints.txt").read_text() == (REPO / "requirements.lock").read_text()


def test_the_same_code_makes_the_same_bytes(tmp_path: Path) -> None:
    one, two = (write_shipped_code(tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_pip_installs_it_with_its_command_its_extras_and_its_templates(tmp_path: Path) -> None:
    wheel = write_shipped_code(tmp_path)
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from importlib.metadata import distribution\n"
        "import cluster.cloud.templates, cluster.code_version\n"
        "told = distribution('alpaca-jobs')\n"
        "print(cluster.code_version.code_version())\n"
        "print(cluster.cloud.templates._PACKAGED.joinpath('run.yaml').is_file())\n"
        "print('node' in told.metadata.get_all('Provides-Extra'))\n"
        "print([point.name for point in told.entry_points])"
    )
    shown = subprocess.run([sys.executable, "-P", "-c", program, str(site)], capture_output=True, text=True, cwd="/")
    assert shown.stdout.splitlines() == [code_version(), "True", "True", "['alpaca-jobs']"], shown.stderr
