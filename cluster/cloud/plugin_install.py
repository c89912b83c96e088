"""Making SkyPilot load our recovery strategy, and undoing it: one small file, and an entry in each of two lists.

The entry in ~/.sky/plugins.yaml names a loader that needs nothing of ours (cluster/cloud/plugin_loader.py). SkyPilot
finds modules where its own Python looks. Its API server runs in the same environment as `alpaca-jobs` (the extra `sky`
puts both there), and the loader is written into that environment's site-packages. A job controller on a machine of its
own gets it in a wheel (cluster/cloud/plugin_controller.py).
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cloud.plugin_controller import (
    ControllerPlugin,
    controller_plugin,
    install_on_controllers,
    remove_from_controllers,
)
from cluster.cloud.plugin_lists import add_entry, drop_entry, listed
from cluster.cloud.plugin_loader import ENTRY, LOADER, MODULE


@dataclass(frozen=True)
class PluginStatus:
    """Whether SkyPilot on this machine would load our strategy when its API server starts next.

    Attributes:
        settings: SkyPilot's list of plugins. loader: our file.
        is_listed, is_loadable: our entry is in the list; the loader is there, and it is this version's.
        others: classes of plugins that are not ours.
        controllers: the same for controllers on machines of their own.
    """

    settings: Path
    loader: Path
    is_listed: bool
    is_loadable: bool
    others: tuple[str, ...]
    controllers: ControllerPlugin

    @property
    def is_installed(self) -> bool:
        """All of it is there."""
        return self.is_listed and self.is_loadable and self.controllers.is_installed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": str(self.settings), "loader": str(self.loader), "is_listed": self.is_listed,
            "is_loadable": self.is_loadable, "is_installed": self.is_installed, "others": list(self.others),
            "controllers": self.controllers.to_json(),
        }  # fmt: skip


def plugin_status(environ: Mapping[str, str] = os.environ, *, site_packages: Path | None = None) -> PluginStatus:
    """Look at all of its files; reads only.

    Args:
        environ: SkyPilot's own variables may name other lists than those in ~/.sky.
        site_packages: where SkyPilot's Python finds modules; None for this Python's.

    Raises:
        WrongInput: a list of plugins is not what SkyPilot would take.
    """
    settings = Path(environ.get("SKYPILOT_SERVER_PLUGINS_CONFIG", "~/.sky/plugins.yaml")).expanduser()
    loader = (site_packages or Path(sysconfig.get_path("purelib"))) / f"{MODULE}.py"
    classes = listed(settings)
    is_loadable = loader.is_file() and loader.read_text(encoding="utf-8") == LOADER
    others = tuple(name for name in classes if name != ENTRY)
    return PluginStatus(settings, loader, ENTRY in classes, is_loadable, others, controller_plugin(settings, environ))


def install_plugin(status: PluginStatus) -> None:
    """Write the loader, then add the entry: in this order, so that no list ever names what is not there.

    Raises:
        LaunchFailed: this package is not installed, so nothing of it can be shipped to a controller.
    """
    status.loader.write_text(LOADER, encoding="utf-8")
    add_entry(status.settings, ENTRY)
    install_on_controllers(status.controllers)


def remove_plugin(status: PluginStatus) -> None:
    """Take the entries out, then what they name; other entries stay, and an empty list goes with its file."""
    remove_from_controllers(status.controllers)
    drop_entry(status.settings, ENTRY)
    status.loader.unlink(missing_ok=True)
