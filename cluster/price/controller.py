"""Where SkyPilot's job controller lives, by its settings on this machine: whether it is a machine that is paid for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

_SETTINGS = "~/.sky/config.yaml"
_OTHER_SETTINGS = "SKYPILOT_GLOBAL_CONFIG"
"""Environment variable that names another file. Source: sky/skypilot_config.py of SkyPilot 0.14.1."""


def is_consolidated(settings: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether SkyPilot's settings put the job controller into its API server, where it costs nothing.

    Args:
        settings: None for the file that SkyPilot reads.
    """
    path = settings or Path(environ.get(_OTHER_SETTINGS) or _SETTINGS)
    try:
        body = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
        return body["jobs"]["controller"]["consolidation_mode"] is True
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        return False
