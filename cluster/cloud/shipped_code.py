"""A wheel of the very code that is running, to be installed on nodes: never "whatever is on the index today".

Made from the installed files, so that it works from a checkout and from an installed wheel alike, and needs no build
tool. Its version carries the hash of what is in it (cluster/code_version.py), so that two of them are never mistaken.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cluster.code_version import ROOMS, code_version
from cluster.errors import LaunchFailed

_NAME: Final = "alpaca_jobs"
_WHEEL: Final = "Wheel-Version: 1.0\nGenerator: alpaca-jobs\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)  # the same code makes the same bytes


def write_shipped_code(folder: Path) -> Path:
    """Put the wheel and `constraints.txt` (the versions it was tested with) into a folder; returns the wheel.

    An older wheel of ours does not stay there: a node installs the one that it finds (sky/run.yaml).

    Raises:
        LaunchFailed: this package is not installed, so nobody knows what it depends on.
    """
    wheel = write_wheel(folder)
    for old in folder.glob(f"{_NAME}-*.whl"):
        if old != wheel:
            old.unlink(missing_ok=True)  # another launch of the same code may be doing the same
    _replace(folder / "constraints.txt", _constraints(_ROOT).encode())
    return wheel


def wheel_name() -> str:
    """The file name of this very code's wheel."""
    return f"{_NAME}-{code_version()}-py3-none-any.whl"


def write_wheel(folder: Path, *, files: Mapping[str, str] = MappingProxyType({}), requires: Sequence[str] = ()) -> Path:
    """Write the wheel into a folder; returns it.

    Args:
        files: what it holds besides, as name -> text.
        requires: what it asks for besides.

    Raises:
        LaunchFailed: this package is not installed, so nobody knows what it depends on.
    """
    version = code_version()
    content = {**_room_files(_ROOT), **_info_files(version, requires)}
    content |= {name: text.encode() for name, text in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / wheel_name()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(content.items()):
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), data)
        record = f"{_NAME}-{version}.dist-info/RECORD"
        lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in sorted(content.items())]
        archive.writestr(zipfile.ZipInfo(record, _LONG_AGO), "\n".join([*lines, f"{record},,", ""]))
    _replace(wheel, packed.getvalue())
    return wheel


def _replace(path: Path, content: bytes) -> None:
    """Write a file in one step, if it is not there already: other launches write the same one, or are shipping it."""
    if path.is_file() and path.read_bytes() == content:
        return
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".tmp", delete=False) as file:
        file.write(content)
    temporary = Path(file.name)
    temporary.chmod(0o644)
    temporary.replace(path)


def _room_files(root: Path) -> dict[str, bytes]:
    found = {path: f"{path.relative_to(root)}" for room in ROOMS for path in (root / room).rglob("*") if path.is_file()}
    if not (root / "cluster" / "_templates").is_dir():
        found |= {path: f"cluster/_templates/{path.name}" for path in (root / "sky").iterdir()}
    return {name: path.read_bytes() for path, name in found.items() if "__pycache__" not in name}


def _info_files(version: str, requires: Sequence[str]) -> dict[str, bytes]:
    try:
        told = metadata.distribution("alpaca-jobs")
    except metadata.PackageNotFoundError as exc:
        raise LaunchFailed("alpaca-jobs is not installed here, so it cannot be shipped. Run: pip install -e .") from exc
    about = re.sub(r"(?m)^Version: .*$", f"Version: {version}", told.read_text("METADATA") or "", count=1)
    lines = "".join(f"Requires-Dist: {name}\n" for name in requires)  # headers end at the first empty line
    about = re.sub(r"(?m)^(Version: .*\n)", rf"\1{lines}", about, count=1)
    texts = {"METADATA": about, "WHEEL": _WHEEL, "entry_points.txt": told.read_text("entry_points.txt") or ""}
    return {f"{_NAME}-{version}.dist-info/{name}": text.encode() for name, text in texts.items()}


def _constraints(root: Path) -> str:
    """The lock: of the checkout, or the copy that is in an installed wheel."""
    for lock in (root / "cluster" / "_lock" / "requirements.lock", root / "requirements.lock"):
        if lock.is_file():
            return lock.read_text(encoding="utf-8")
    raise LaunchFailed(f"{root} has no requirements.lock, which says what a node has to install. Install it again.")


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
