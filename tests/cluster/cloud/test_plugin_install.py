"""The plugin's two files: other entries stay, removal leaves nothing, and a broken package never stops the server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.cloud.plugin_install import ENTRY, PluginStatus, install_plugin, plugin_status, remove_plugin
from cluster.errors import WrongInput

OTHER = {"class": "their.plugin.Class", "parameters": {"key": "value"}}


def look(folder: Path) -> PluginStatus:
    (folder / "site").mkdir(exist_ok=True)
    environ = {"SKYPILOT_SERVER_PLUGINS_CONFIG": str(folder / ".sky" / "plugins.yaml")}
    return plugin_status(environ, site_packages=folder / "site")


def test_installing_makes_both_files_and_removing_leaves_none(tmp_path: Path) -> None:
    assert not look(tmp_path).is_installed
    install_plugin(look(tmp_path))
    assert look(tmp_path).is_installed
    install_plugin(look(tmp_path))  # again, without harm
    assert yaml.safe_load(look(tmp_path).settings.read_text()) == {"plugins": [{"class": ENTRY}]}
    remove_plugin(look(tmp_path))
    remove_plugin(look(tmp_path))
    assert not look(tmp_path).settings.exists()
    assert not look(tmp_path).loader.exists()


def test_what_others_have_put_there_stays(tmp_path: Path) -> None:
    settings = look(tmp_path).settings
    settings.parent.mkdir()
    body = {"controller_wheel_path": "/wheels", "plugins": [OTHER]}
    settings.write_text(yaml.safe_dump(body))
    install_plugin(look(tmp_path))
    assert yaml.safe_load(settings.read_text()) == {**body, "plugins": [OTHER, {"class": ENTRY}]}
    assert look(tmp_path).others == ("their.plugin.Class",)
    remove_plugin(look(tmp_path))
    assert yaml.safe_load(settings.read_text()) == body


def test_a_loader_that_is_gone_or_old_shows_and_is_repaired(tmp_path: Path) -> None:
    install_plugin(look(tmp_path))
    look(tmp_path).loader.write_text("# an older one\n")
    assert look(tmp_path).is_listed
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
