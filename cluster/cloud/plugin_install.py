"""Making SkyPilot load our recovery strategy, and undoing it: one small file, and an entry in each of two lists.

The entry in ~/.sky/plugins.yaml names a loader that needs nothing of ours (cluster/cloud/plugin_loader.py). SkyPilot
finds modules where its own Python looks, and does not start where one is missing. So the loader is written into every
environment that SkyPilot could start its API server from (cluster/cloud/sky_environments.py): ours, in the first place
(the extra `sky` puts both there). A job controller on a machine of its own gets it in a wheel
(cluster/cloud/plugin_controller.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
from cluster.cloud.sky_environments import SkyEnvironment, sky_environments
from cluster.errors import WrongInput


@dataclass(frozen=True)
class PluginStatus:
    """Whether SkyPilot on this machine would load our strategy when its API server starts next.

    Attributes:
        settings: SkyPilot's list of plugins.
        environments: where SkyPilot may start its server from, ours first; `loaders` are our files in them.
        is_listed: our entry is in the list.
        others: classes of plugins that are not ours.
        controllers: the same for controllers on machines of their own.
    """

    settings: Path
    environments: tuple[SkyEnvironment, ...]
    is_listed: bool
    others: tuple[str, ...]
    controllers: ControllerPlugin

    @property
    def loaders(self) -> tuple[Path, ...]:
        """Our file in each of the environments, there or not."""
        return tuple(one.site_packages / f"{MODULE}.py" for one in self.environments)

    @property
    def missing(self) -> tuple[Path, ...]:
        """Loaders that are not there, or are of another version."""
        return tuple(path for path in self.loaders if not _is_current(path))

    @property
    def is_loadable(self) -> bool:
        """The loader is in every environment, and it is this version's."""
        return not self.missing

    @property
    def is_installed(self) -> bool:
        """All of it is there."""
        return self.is_listed and self.is_loadable and self.controllers.is_installed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": str(self.settings), "loaders": [str(path) for path in self.loaders],
            "missing": [str(path) for path in self.missing], "is_listed": self.is_listed,
            "is_loadable": self.is_loadable, "is_installed": self.is_installed, "others": list(self.others),
            "controllers": self.controllers.to_json(),
        }  # fmt: skip


def settings_path(environ: Mapping[str, str] = os.environ) -> Path:
    """SkyPilot's list of plugins for its API server."""
    return Path(environ.get("SKYPILOT_SERVER_PLUGINS_CONFIG", "~/.sky/plugins.yaml")).expanduser()


def plugin_status(
    environ: Mapping[str, str] = os.environ, *, environments: Sequence[SkyEnvironment] | None = None
) -> PluginStatus:
    """Look at all of its files; reads only.

    Args:
        environ: SkyPilot's own variables may name other lists than those in ~/.sky.
        environments: where SkyPilot may start its server from; None to look.

    Raises:
        WrongInput: a list of plugins is not what SkyPilot would take.
    """
    settings = settings_path(environ)
    places = sky_environments(environ) if environments is None else tuple(environments)
    classes = listed(settings)
    others = tuple(name for name in classes if name != ENTRY)
    return PluginStatus(settings, places, ENTRY in classes, others, controller_plugin(settings, environ))


def install_plugin(status: PluginStatus) -> None:
    """Write the loaders, then add the entry: in this order, so that no list ever names what is not there.

    Raises:
        WrongInput: SkyPilot has an environment that cannot be written to; nothing was changed.
        LaunchFailed: this package is not installed, so nothing of it can be shipped to a controller.
    """
    for place, path in zip(status.environments, status.loaders, strict=True):
        if path in status.missing and not os.access(place.site_packages, os.W_OK):
            raise WrongInput(
                f"SkyPilot's list of plugins counts for {place.found}, too, and you may not write to its "
                f"{place.site_packages}. Without the loader its API server would not start, so nothing was changed. "
                "Take that `sky` off PATH, or let somebody who may write there do this: alpaca-jobs plugin install"
            )
    for path in status.missing:
        path.write_text(LOADER, encoding="utf-8")
    add_entry(status.settings, ENTRY)
    install_on_controllers(status.controllers)


def remove_plugin(status: PluginStatus) -> None:
    """Take the entries out, then what they name; other entries stay, and an empty list goes with its file."""
    remove_from_controllers(status.controllers)
    drop_entry(status.settings, ENTRY)
    for path in status.loaders:
        path.unlink(missing_ok=True)


def _is_current(path: Path) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == LOADER
