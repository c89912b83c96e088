"""SkyPilot in another environment than ours: one list of plugins for all of them, and each has to find the loader."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.cloud.plugin_install import PluginStatus, install_plugin, plugin_status, remove_plugin
from cluster.cloud.plugin_loader import MODULE
from cluster.cloud.sky_environments import SkyEnvironment, own_environment, sky_environments
from cluster.errors import WrongInput

pytestmark = pytest.mark.process

LOADS = f"""
import {MODULE}
plugin = {MODULE}.AlpacaJobsPlugin()
plugin.install(None)
print(plugin.name)
"""


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as `uv tool install skypilot` makes one: with SkyPilot (here its names alone), without us."""
    folder = tmp_path_factory.mktemp("tool") / "skypilot"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = site_of(folder)
    (site / "skypilot-0.14.1.dist-info").mkdir()
    (site / "skypilot-0.14.1.dist-info" / "METADATA").write_text("Name: skypilot\nVersion: 0.14.1\n")
    (site / "sky" / "server").mkdir(parents=True)
    for package in (site / "sky", site / "sky" / "server"):
        (package / "__init__.py").touch()
    (site / "sky" / "server" / "plugins.py").write_text("class BasePlugin:\n    pass\n")
    (site / "sky" / "server" / "server.py").write_text("import time\ntime.sleep(60)\n")
    script(folder / "bin" / "sky", f"#!{folder}/bin/python\nfrom sky.cli import cli\ncli()\n")
    return folder


@pytest.fixture
def server(tool: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An API server that somebody has started from there, in a home of its own."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    process = subprocess.Popen([tool / "bin" / "python", "-u", "-m", "sky.server.server"], env=environ)
    yield process
    process.kill()
    process.wait()


def site_of(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def look(tool: Path, folder: Path) -> PluginStatus:
    environ = {
        "SKYPILOT_SERVER_PLUGINS_CONFIG": str(folder / "plugins.yaml"),
        "SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG": str(folder / "remote_plugins.yaml"),
        "ALPACA_JOBS_HOME": str(folder / "home"),
        "PATH": str(tool / "bin"), "HOME": str(folder),
    }  # fmt: skip
    others = [one for one in sky_environments(environ) if one != own_environment()]  # ours is the developer's
    return plugin_status(environ, environments=others)


def test_skypilot_that_was_installed_by_a_tool_of_its_own_finds_the_loader(tool: Path, tmp_path: Path) -> None:
    assert look(tool, tmp_path).environments == (
        SkyEnvironment(site_of(tool), str(tool / "bin" / "sky"), has_package=False),
    )
    install_plugin(look(tool, tmp_path))
    assert look(tool, tmp_path).is_installed
    run = subprocess.run([tool / "bin" / "python", "-I", "-c", LOADS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "alpaca-jobs (not loaded)\n"  # it starts, and a launch is told that the strategy is not there
    look(tool, tmp_path).loaders[0].unlink()  # the environment was made anew
    assert not look(tool, tmp_path).is_installed
    install_plugin(look(tool, tmp_path))  # as `doctor` does
    assert look(tool, tmp_path).is_installed
    remove_plugin(look(tool, tmp_path))
    assert not list(site_of(tool).glob(f"{MODULE}*"))


def test_the_environment_of_a_running_server_counts_and_one_of_another_home_does_not(
    tool: Path, tmp_path: Path, server: subprocess.Popen[bytes]
) -> None:
    def found(home: Path) -> list[str]:
        return [one.found for one in sky_environments({"PATH": "/nowhere", "HOME": str(home)})[1:]]

    give_up_at = time.monotonic() + 10
    while not found(tmp_path) and time.monotonic() < give_up_at:
        time.sleep(0.05)  # it has not become Python yet
    assert found(tmp_path) == [f"SkyPilot's API server, which runs (pid {server.pid})"]
    assert found(tmp_path / "another") == []


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\nimport sys\nfrom sky.client.cli import cli\n",
        "#!{python}\n# -*- coding: utf-8 -*-\nimport sys\nfrom sky.cli import cli\n",
    ],
)
def test_a_script_says_which_python_it_runs_in(tool: Path, tmp_path: Path, text: str) -> None:
    script(tmp_path / "bin" / "sky", text.format(python=tool / "bin" / "python"))
    found = sky_environments({"PATH": f"{tmp_path / 'bin'}:{tmp_path / 'none'}", "HOME": str(tmp_path)})
    assert [one.site_packages for one in found] == [own_environment().site_packages, site_of(tool)]


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\nweather\n", "#!{python}\nprint('stars')\n", "#!/gone/bin/python\nfrom sky.cli import cli\n"]
)
def test_what_is_called_sky_and_starts_no_skypilot_does_not_count(tool: Path, tmp_path: Path, text: str) -> None:
    script(tmp_path / "bin" / "sky", text.format(python=tool / "bin" / "python"))
    assert sky_environments({"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}) == (own_environment(),)


def test_where_the_loader_cannot_be_written_nothing_is_changed(tmp_path: Path) -> None:
    settings = {"SKYPILOT_SERVER_PLUGINS_CONFIG": str(tmp_path / "plugins.yaml")}
    (tmp_path / "site").mkdir()
    places = [
        SkyEnvironment(tmp_path / "site", "here", has_package=True),
        SkyEnvironment(Path("/proc/self"), "/opt/sky/bin/sky", has_package=False),  # nobody may, root neither
    ]
    with pytest.raises(WrongInput, match=r"counts for /opt/sky/bin/sky, too, .* so nothing was changed"):
        install_plugin(plugin_status(settings, environments=places))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
