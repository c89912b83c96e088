"""Which code this is, by content: "0.1.0+4f1c09ab77e2". A launch records it, and resume compares it.

The hash covers the four rooms and the templates of sky/, so a checkout and the wheel built from it agree, and an edit
that was never committed shows.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

ROOMS = ("checkpoints", "alpaca_jobs", "cluster", "cli")
_PACKAGED_TEMPLATES = Path("cluster/_templates")


def code_version(root: Path | None = None) -> str:
    """Version of the installed package, "+", and 12 hex digits of `code_digest`.

    Args:
        root: the folder that holds the rooms; None for where this very file is.
    """
    try:
        version = metadata.version("alpaca-jobs").partition("+")[0]  # a shipped wheel carries the hash in its version
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        version = "0"
    return f"{version}+{code_digest(root or _own_root())[:12]}"


def code_digest(root: Path) -> str:
    """SHA-256 over the relative paths and bytes of the rooms' and templates' files, in hexadecimal.

    Hidden files and compiled ones do not count. A wheel holds sky/ as cluster/_templates/; it counts as sky/ there.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_counted(root).items()):
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _counted(root: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    packaged = root / _PACKAGED_TEMPLATES
    templates = packaged if packaged.is_dir() else root / "sky"
    for folder, name in [(root / room, room) for room in ROOMS] + [(templates, "sky")]:
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            if not path.is_file() or path.suffix == ".pyc" or any(part[0] in "._" for part in inside.parts[:-1]):
                continue  # folders: __pycache__, _templates (counted as sky/), .hidden
            if not inside.name.startswith("."):
                files[f"{name}/{inside.as_posix()}"] = path
    return files


def _own_root() -> Path:
    return Path(__file__).resolve().parent.parent
