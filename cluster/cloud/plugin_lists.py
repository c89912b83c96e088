"""SkyPilot's lists of plugins, as files: read, changed in one step, and left as they were for everybody else's entries.

    ~/.sky/plugins.yaml           what SkyPilot's API server loads; `controller_wheel_path` names a folder of wheels
    ~/.sky/remote_plugins.yaml    what a job controller on a machine of its own loads, with those wheels installed

Source: sky/server/plugins.py of SkyPilot 0.14.1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import WrongInput


def read_settings(path: Path) -> dict[str, Any]:
    """The whole file; empty where there is none.

    Raises:
        WrongInput: it is not what SkyPilot would take.
    """
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as exc:
        raise WrongInput(f"{path} is not YAML ({exc}); SkyPilot would not start either. Repair it first.") from exc
    if body is not None and not isinstance(body, dict):
        raise WrongInput(f"{path} holds {type(body).__name__}, but SkyPilot wants `plugins: [...]`. Repair it first.")
    _entries(body or {}, path)
    return body or {}


def listed(path: Path) -> list[str]:
    """The classes that a list names; raises as `read_settings` does."""
    return _classes(_entries(read_settings(path), path))


def add_entry(path: Path, entry: str) -> None:
    """Put a class on a list, behind those that are there; again without harm."""
    body = read_settings(path)
    entries = _entries(body, path)
    if entry not in _classes(entries):
        write_settings(path, {**body, "plugins": [*entries, {"class": entry}]})


def drop_entry(path: Path, entry: str) -> None:
    """Take a class off a list; a list that would be empty goes with its file, if nothing else is in it."""
    body = read_settings(path)
    entries = _entries(body, path)
    left = [one for one in entries if one.get("class") != entry]
    if len(left) != len(entries):
        rest = {key: value for key, value in body.items() if key != "plugins"}
        write_settings(path, {**rest, **({"plugins": left} if left else {})})


def write_settings(path: Path, body: Mapping[str, Any]) -> None:
    """Replace the file in one step; an empty one is removed."""
    if not body:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(yaml.safe_dump(dict(body), sort_keys=False), encoding="utf-8")
    temporary.replace(path)


def _classes(entries: list[dict[str, Any]]) -> list[str]:
    return [str(one.get("class", "")) for one in entries]


def _entries(body: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    entries = body.get("plugins") or []
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise WrongInput(f"{path}: `plugins` is not a list of `class: ...` entries. Repair it first.")
    return entries
