"""`alpaca-jobs plugin install | status | remove`: our recovery strategy in SkyPilot, as it runs from this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli import options, render, starting

if TYPE_CHECKING:
    from cluster.cloud.plugin_install import PluginStatus

_RESTART = "SkyPilot reads it when its API server starts: sky api stop, then sky api start."


def install(yes: options.Yes = False) -> None:
    """Let SkyPilot recover jobs of ours by our own strategy.

    Example: alpaca-jobs plugin install

    Its files are shown first; other plugins stay. Every environment that SkyPilot is in (each `sky` on PATH, the server
    that runs) gets the loader: SkyPilot does not start where it is missing. Undone by: alpaca-jobs plugin remove.
    """
    from cluster.cloud.plugin_install import install_plugin, plugin_status
    from cluster.cloud.plugin_loader import ENTRY
    from cluster.cloud.sky_backend import SkyJobs

    SkyJobs()  # says in words where SkyPilot is not installed
    status = plugin_status()
    if status.is_installed:
        render.say(f"It is installed already. {_RESTART}")
        return
    there = status.controllers
    rows = [
        ("add to it", f"{status.settings}: class: {ENTRY}, controller_wheel_path: {there.folder}"),
        *(("write", str(path)) for path in status.loaders),
        ("add to it", f"{there.remote}: class: {ENTRY}"),
        ("write", f"{there.folder}: a wheel of this code, for controllers on machines of their own"),
    ]
    rows += [("stays in it", ", ".join(status.others))] if status.others else []
    starting.agree("Install the plugin?", yes=yes, grids=_files(rows))
    install_plugin(status)
    for place in status.environments:
        if not place.has_package:
            render.say(
                f"alpaca-jobs is not installed where {place.found} is: SkyPilot starts from there, and recovers by its "
                "own strategy. Install it there, too (such as uv tool install skypilot --with alpaca-jobs), or start "
                "SkyPilot from here."
            )
    render.say(f"Installed. {_RESTART}")


def status(as_json: options.Json = False) -> None:
    """Say whether SkyPilot's API server on this machine loads our strategy when it starts.

    Example: alpaca-jobs plugin status
    """
    from cluster.cloud.plugin_install import plugin_status

    found = plugin_status()
    if as_json:
        render.out_json(found.to_json())
        return
    render.out_grid(render.pairs("alpaca-jobs in SkyPilot", _status_rows(found)))


def remove(yes: options.Yes = False) -> None:
    """Take our strategy out of SkyPilot again; other plugins stay.

    Example: alpaca-jobs plugin remove
    """
    from cluster.cloud.plugin_install import plugin_status, remove_plugin

    found = plugin_status()
    there = found.controllers
    if (
        not found.is_listed
        and not any(path.exists() for path in found.loaders)
        and not there.is_listed
        and there.wheel is None
    ):
        render.say("It is not installed; nothing was changed.")
        return
    starting.agree("Remove the plugin?", yes=yes, grids=_files(_removed(found)))
    remove_plugin(found)
    render.say("Removed. Jobs that were submitted with it need it: let them end before the API server starts again.")


def _removed(found: PluginStatus) -> list[tuple[str, str]]:
    rows = [("change", str(found.settings)), *(("delete", str(path)) for path in found.loaders)]
    rows += [("change", str(found.controllers.remote))]
    return rows + ([("delete", str(found.controllers.wheel))] if found.controllers.wheel else [])


def _status_rows(found: PluginStatus) -> list[tuple[str, str]]:
    if found.is_installed:
        words = "installed"
    elif found.is_listed:
        words = "only in part, or of another version: alpaca-jobs plugin install repairs it"
    else:
        words = "not installed: alpaca-jobs plugin install"
    rows = [("state", words), ("list of plugins", str(found.settings))]
    for place, path in zip(found.environments, found.loaders, strict=True):
        lack = " (missing)" if path in found.missing else "" if place.has_package else " (without alpaca-jobs there)"
        rows.append(("loader", f"{path}{lack}, for {place.found}"))
    rows += [("list for controllers", str(found.controllers.remote))]
    rows += [("wheel for controllers", str(found.controllers.wheel or f"none in {found.controllers.folder}"))]
    return rows + ([("other plugins", ", ".join(found.others))] if found.others else [])


def _files(rows: list[tuple[str, str]]) -> list[render.Grid]:
    return [render.pairs("These files of this machine will be changed", rows)]
