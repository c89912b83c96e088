"""The plugin's files: other entries stay, removal leaves nothing, and a broken package never stops the server."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from cluster.cloud.plugin_controller import refresh_wheel
from cluster.cloud.plugin_install import PluginStatus, install_plugin, plugin_status, remove_plugin
from cluster.cloud.plugin_loader import ENTRY, LOADER, MODULE
from cluster.cloud.shipped_code import wheel_name
from cluster.cloud.sky_environments import SkyEnvironment
from cluster.errors import WrongInput

OTHER = {"class": "their.plugin.Class", "parameters": {"key": "value"}}


def look(folder: Path) -> PluginStatus:
    (folder / "site").mkdir(exist_ok=True)
    environ = {
        "SKYPILOT_SERVER_PLUGINS_CONFIG": str(folder / ".sky" / "plugins.yaml"),
        "SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG": str(folder / ".sky" / "remote_plugins.yaml"),
        "ALPACA_JOBS_HOME": str(folder / "home"),
    }
    return plugin_status(environ, environments=[SkyEnvironment(folder / "site", "here", has_package=True)])


def test_installing_makes_its_files_and_removing_leaves_none(tmp_path: Path) -> None:
    assert not look(tmp_path).is_installed
    install_plugin(look(tmp_path))
    assert look(tmp_path).is_installed
    install_plugin(look(tmp_path))  # again, without harm
    wheels = tmp_path / "home" / "controller-wheels"
    assert yaml.safe_load(look(tmp_path).settings.read_text()) == {
        "controller_wheel_path": str(wheels),
        "plugins": [{"class": ENTRY}],
    }
    assert yaml.safe_load(look(tmp_path).controllers.remote.read_text()) == {"plugins": [{"class": ENTRY}]}
    assert [path.name for path in wheels.iterdir()] == [wheel_name()]
    remove_plugin(look(tmp_path))
    remove_plugin(look(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not wheels.exists()


def test_what_others_have_put_there_stays(tmp_path: Path) -> None:
    settings = look(tmp_path).settings
    settings.parent.mkdir()
    wheels, remote = tmp_path / "wheels", settings.with_name("remote_plugins.yaml")
    wheels.mkdir()
    (wheels / "theirs-1.0-py3-none-any.whl").touch()
    body = {"controller_wheel_path": str(wheels), "plugins": [OTHER]}
    settings.write_text(yaml.safe_dump(body))
    remote.write_text(yaml.safe_dump({"plugins": [OTHER]}))
    install_plugin(look(tmp_path))
    assert sorted(path.name for path in wheels.iterdir()) == [wheel_name(), "theirs-1.0-py3-none-any.whl"]
    assert yaml.safe_load(remote.read_text()) == {"plugins": [OTHER, {"class": ENTRY}]}
    assert yaml.safe_load(settings.read_text()) == {**body, "plugins": [OTHER, {"class": ENTRY}]}
    assert look(tmp_path).others == ("their.plugin.Class",)
    remove_plugin(look(tmp_path))
    assert yaml.safe_load(settings.read_text()) == body
    assert yaml.safe_load(remote.read_text()) == {"plugins": [OTHER]}
    assert [path.name for path in wheels.iterdir()] == ["theirs-1.0-py3-none-any.whl"]


def test_what_a_controller_installs_is_this_very_code_with_the_loader(tmp_path: Path) -> None:
    found = look(tmp_path).controllers
    found.folder.mkdir(parents=True)
    (found.folder / "alpaca_jobs-0.0.1+0123456789ab-py3-none-any.whl").touch()
    install_plugin(look(tmp_path))
    wheel = look(tmp_path).controllers.wheel
    assert [path for path in found.folder.iterdir()] == [wheel]  # the older one is gone
    assert wheel is not None
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{MODULE}.py").decode() == LOADER
        assert "cluster/cloud/sky_plugin.py" in archive.namelist()
        (metadata,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        assert "Requires-Dist: boto3" in archive.read(metadata).decode().split("\n\n")[0].splitlines()
    written = wheel.stat().st_mtime_ns
    refresh_wheel(look(tmp_path).controllers)
    assert wheel.stat().st_mtime_ns == written  # it is current, so nothing is written


def test_a_loader_that_is_gone_or_old_shows_and_is_repaired(tmp_path: Path) -> None:
    install_plugin(look(tmp_path))
    look(tmp_path).loaders[0].write_text("# an older one\n")
    assert look(tmp_path).is_listed
    assert not look(tmp_path).is_installed
    install_plugin(look(tmp_path))
    assert look(tmp_path).is_installed


def test_a_plugin_that_does_not_reach_controllers_is_half_of_one(tmp_path: Path) -> None:
    install_plugin(look(tmp_path))
    look(tmp_path).controllers.remote.unlink()
    assert look(tmp_path).is_loadable
    assert not look(tmp_path).is_installed
    install_plugin(look(tmp_path))
    assert look(tmp_path).is_installed


@pytest.mark.parametrize("text", ["plugins: [", "- a list", "plugins: {a: b}", "plugins: [text]"])
def test_a_list_that_skypilot_would_refuse_is_not_touched(tmp_path: Path, text: str) -> None:
    (tmp_path / ".sky").mkdir()
    (tmp_path / ".sky" / "plugins.yaml").write_text(text)
    with pytest.raises(WrongInput, match="Repair it first"):
        look(tmp_path)
    assert (tmp_path / ".sky" / "plugins.yaml").read_text() == text


@pytest.mark.slow
@pytest.mark.parametrize("state", ["whole", "gone", "broken"])
def test_skypilot_loads_its_plugins_whatever_has_become_of_our_package(tmp_path: Path, state: str) -> None:
    """As its API server does, twice in one process; in the end the strategy is there if our package is."""
    install_plugin(look(tmp_path))
    program = """
import sys
if sys.argv[1] != "whole":
    sys.modules["cluster"] = None  # import cluster... raises ImportError from here on
if sys.argv[1] == "broken":
    import types
    class Broken(types.ModuleType):
        def __getattr__(self, name): raise SystemExit("broken")
    sys.modules["cluster"], sys.modules["cluster.cloud.sky_plugin"] = types.ModuleType("cluster"), Broken("sky_plugin")
from sky.server import plugins
from sky.utils import registry
for context in (plugins.PluginContext.MAIN, plugins.PluginContext.UVICORN):
    plugins.load_plugins(plugins.ExtensionContext(context))
print("alpaca_jobs" in registry.JOBS_RECOVERY_STRATEGY_REGISTRY, [one.name for one in plugins.get_plugins()])
"""
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "site"),
        "SKYPILOT_SERVER_PLUGINS_CONFIG": str(look(tmp_path).settings), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program, state], capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    # The plugin's name is what `launch` asks the server for: it may say it only where the strategy is really there.
    expected = "True ['alpaca-jobs']" if state == "whole" else "False ['alpaca-jobs (not loaded)']"
    assert done.stdout.splitlines()[-1] == expected
    assert ("is not loaded" in done.stdout + done.stderr) == (state != "whole")
