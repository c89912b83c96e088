"""Our recovery strategy on a job controller that is a machine of its own, which is SkyPilot's default.

SkyPilot copies every wheel of one folder there, installs what it has not seen by name, and loads the classes of
~/.sky/remote_plugins.yaml. Our wheel holds the very code that is running and the loader
(cluster/cloud/plugin_loader.py); its name carries the hash of the code, so newer code is installed when the next job is
launched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from cluster.cloud.plugin_lists import add_entry, drop_entry, listed, read_settings, write_settings
from cluster.cloud.plugin_loader import ENTRY, LOADER, MODULE
from cluster.cloud.shipped_code import wheel_name, write_wheel
from cluster.runs.home import Home

_FOLDER: Final = "controller_wheel_path"
_OURS: Final = "alpaca_jobs-*.whl"
# Installed beside SkyPilot: boto3 is asked for, too, so that pip finds versions of both that fit s3fs's botocore.
_ALSO: Final = ("boto3",)
_STORES: Final = ("gcsfs", "adlfs")  # a store that can be opened here is to be opened there


@dataclass(frozen=True)
class ControllerPlugin:
    """Whether a controller machine that SkyPilot starts next would load our strategy.

    Attributes:
        settings: SkyPilot's list of plugins, which names the folder of wheels. remote: the list for controllers.
        folder: where the wheels are, or would be.
        is_listed: our entry is in the list for controllers, and the folder is named.
        wheel: our wheel in the folder, of whatever version; None if there is none.
    """

    settings: Path
    remote: Path
    folder: Path
    is_listed: bool
    wheel: Path | None

    @property
    def is_installed(self) -> bool:
        """All of it is there; the wheel may be older than this code, which the next launch mends."""
        return self.is_listed and self.wheel is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "list": str(self.remote), "folder": str(self.folder), "is_listed": self.is_listed,
            "wheel": str(self.wheel) if self.wheel else None, "is_installed": self.is_installed,
        }  # fmt: skip


def controller_plugin(settings: Path, environ: Mapping[str, str] = os.environ) -> ControllerPlugin:
    """Look at what SkyPilot would hand to a controller machine; reads only.

    Args:
        settings: SkyPilot's list of plugins for its API server.
        environ: SkyPilot's own variable may name another list than ~/.sky/remote_plugins.yaml.

    Raises:
        WrongInput: a list is not what SkyPilot would take.
    """
    remote = Path(environ.get("SKYPILOT_SERVER_REMOTE_PLUGINS_CONFIG", "~/.sky/remote_plugins.yaml")).expanduser()
    named = read_settings(settings).get(_FOLDER)
    folder = Path(str(named)).expanduser() if named else Home.default(environ).root / "controller-wheels"
    wheels = sorted(folder.glob(_OURS), key=lambda wheel: wheel.stat().st_mtime)
    is_listed = named is not None and ENTRY in listed(remote)
    return ControllerPlugin(settings, remote, folder, is_listed, wheels[-1] if wheels else None)


def install_on_controllers(found: ControllerPlugin) -> None:
    """Write the wheel, name its folder, then add the entry: no list ever names what is not there.

    A folder that is named already is somebody's choice; our wheel joins theirs.

    Raises:
        LaunchFailed: this package is not installed, so there is no wheel of it.
    """
    refresh_wheel(found)
    body = read_settings(found.settings)
    if _FOLDER not in body:
        write_settings(found.settings, {_FOLDER: str(found.folder), **body})
    add_entry(found.remote, ENTRY)


def remove_from_controllers(found: ControllerPlugin) -> None:
    """Undo it: the entry, the folder's name if the folder is ours and empty then, the wheel."""
    drop_entry(found.remote, ENTRY)
    for wheel in found.folder.glob(_OURS):
        wheel.unlink()
    body = read_settings(found.settings)
    if body.get(_FOLDER) == str(found.folder) and not any(found.folder.glob("*.whl")):
        write_settings(found.settings, {key: value for key, value in body.items() if key != _FOLDER})
        if found.folder.is_dir() and not any(found.folder.iterdir()):
            found.folder.rmdir()


def refresh_wheel(found: ControllerPlugin) -> None:
    """Put this very code's wheel into the folder, in place of an older one of ours."""
    if found.wheel is not None and found.wheel.name == wheel_name():
        return
    extras = tuple(name for name in _STORES if _has(name))
    new = write_wheel(found.folder, files={f"{MODULE}.py": LOADER}, requires=(*_ALSO, *extras))
    for old in found.folder.glob(_OURS):
        if old != new:
            old.unlink(missing_ok=True)  # another launch may be doing the same


def _has(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True
