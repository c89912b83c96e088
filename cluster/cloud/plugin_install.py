"""Making SkyPilot's API server load our recovery strategy, and undoing it: one small file, one entry in one list.

SkyPilot refuses to start when a plugin cannot be imported. So the entry in ~/.sky/plugins.yaml does not name a module
of this package but a loader, copied next to our other state on this machine, that needs nothing of ours: when this
package is gone or broken, the loader says so in the server's log, and SkyPilot runs as if there were no plugin.

SkyPilot finds modules where its own Python looks. Its API server runs in the same environment as `alpaca-jobs` (the
extra `sky` puts both there), and the loader is written into that environment's site-packages as one file.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from cluster.errors import WrongInput

MODULE: Final = "alpaca_jobs_skypilot_plugin"
ENTRY: Final = f"{MODULE}.AlpacaJobsPlugin"
_LOADER: Final = '''"""Loads alpaca-jobs's recovery strategy into SkyPilot. Written by `alpaca-jobs plugin install`.

This file may not fail: SkyPilot's API server does not start when a plugin cannot be loaded.
Remove it with `alpaca-jobs plugin remove`, or delete it together with its entry in ~/.sky/plugins.yaml.
"""

import logging

from sky.server import plugins


class AlpacaJobsPlugin(plugins.BasePlugin):
    """Registers the strategy, or says in the log why it cannot."""

    is_registered = False

    @property
    def name(self):  # what `alpaca-jobs launch` asks the server for
        return "alpaca-jobs" if self.is_registered else "alpaca-jobs (not loaded)"

    def install(self, extension_context):
        try:
            from cluster.cloud.sky_plugin import register

            register()
            self.is_registered = True
        except BaseException as exc:  # whatever it is, it is not worth the user's server
            logging.getLogger("sky.alpaca_jobs").warning(
                "alpaca-jobs's recovery strategy is not loaded (%s: %s); its jobs recover by SkyPilot's own.",
                type(exc).__name__, exc,
            )
'''


@dataclass(frozen=True)
class PluginStatus:
    """Whether SkyPilot on this machine would load our strategy when its API server starts next.

    Attributes:
        settings: SkyPilot's list of plugins. loader: our file.
        is_listed, is_loadable: our entry is in the list; the loader is there, and it is this version's.
        others: classes of plugins that are not ours.
    """

    settings: Path
    loader: Path
    is_listed: bool
    is_loadable: bool
    others: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        """Both halves are there."""
        return self.is_listed and self.is_loadable

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": str(self.settings), "loader": str(self.loader), "is_listed": self.is_listed,
            "is_loadable": self.is_loadable, "is_installed": self.is_installed, "others": list(self.others),
        }  # fmt: skip


def plugin_status(environ: Mapping[str, str] = os.environ, *, site_packages: Path | None = None) -> PluginStatus:
    """Look at both files; reads only.

    Args:
        environ: SkyPilot's own variable may name another list than ~/.sky/plugins.yaml.
        site_packages: where SkyPilot's Python finds modules; None for this Python's.

    Raises:
        WrongInput: the list of plugins is not what SkyPilot would take.
    """
    settings = Path(environ.get("SKYPILOT_SERVER_PLUGINS_CONFIG", "~/.sky/plugins.yaml")).expanduser()
    loader = (site_packages or Path(sysconfig.get_path("purelib"))) / f"{MODULE}.py"
    classes = [str(one.get("class", "")) for one in _entries(_read(settings), settings)]
    is_loadable = loader.is_file() and loader.read_text(encoding="utf-8") == _LOADER
    others = tuple(name for name in classes if name != ENTRY)
    return PluginStatus(settings, loader, ENTRY in classes, is_loadable, others)


def install_plugin(status: PluginStatus) -> None:
    """Write the loader, then add the entry: in this order, so that no list ever names what is not there."""
    status.loader.write_text(_LOADER, encoding="utf-8")
    if not status.is_listed:
        body = _read(status.settings)
        _write(status.settings, {**body, "plugins": [*_entries(body, status.settings), {"class": ENTRY}]})


def remove_plugin(status: PluginStatus) -> None:
    """Take the entry out, then the loader; other entries stay, and a list that would be empty goes with its file."""
    body = _read(status.settings)
    left = [one for one in _entries(body, status.settings) if one.get("class") != ENTRY]
    rest = {key: value for key, value in body.items() if key != "plugins"}
    if status.is_listed and not left and not rest:
        status.settings.unlink()
    elif status.is_listed:
        _write(status.settings, {**rest, **({"plugins": left} if left else {})})
    status.loader.unlink(missing_ok=True)


def _read(settings: Path) -> dict[str, Any]:
    try:
        body = yaml.safe_load(settings.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as exc:
        raise WrongInput(f"{settings} is not YAML ({exc}); SkyPilot would not start either. Repair it first.") from exc
    if body is not None and not isinstance(body, dict):
        raise WrongInput(
            f"{settings} holds {type(body).__name__}, but SkyPilot wants `plugins: [...]`. Repair it first."
        )
    return body or {}


def _entries(body: Mapping[str, Any], settings: Path) -> list[dict[str, Any]]:
    entries = body.get("plugins") or []
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise WrongInput(f"{settings}: `plugins` is not a list of `class: ...` entries. Repair it first.")
    return entries


def _write(settings: Path, body: Mapping[str, Any]) -> None:
    settings.parent.mkdir(parents=True, exist_ok=True)
    temporary = settings.with_name(f".{settings.name}.{os.getpid()}.tmp")
    temporary.write_text(yaml.safe_dump(dict(body), sort_keys=False), encoding="utf-8")
    temporary.replace(settings)
