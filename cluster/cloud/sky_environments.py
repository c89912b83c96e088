"""The Python environments on this machine whose SkyPilot reads this user's list of plugins.

~/.sky/plugins.yaml is one for all of them, but each imports a plugin from its own site-packages, and one that cannot
import it does not start its API server. SkyPilot may be installed beside us (the extra `sky`), by a tool of its own
(`uv tool install skypilot`, pipx), or in another project's environment: every `sky` on PATH is looked at, and the API
server that runs.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

logger = logging.getLogger(__name__)

_SERVER: Final = ("-m", "sky.server.server")  # how SkyPilot 0.14.1 starts its API server (sky/server/common.py)
_SCRIPT_BYTES: Final = 4096
_TIMEOUT_S: Final = 20.0
# A script's own Python: in its first line, or, where that would be too long for the kernel, in the line after it.
_INTERPRETER: Final = re.compile(r"""\A\#!\s*(?:/bin/sh\s+'''exec'\s+)?"?(/[^"\s]*python[^"\s]*)""")
_ASK: Final = """
import sysconfig
from importlib import metadata
def has(name):
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
print(sysconfig.get_path("purelib"), has("skypilot"), has("alpaca-jobs"), sep="\\n")
"""


@dataclass(frozen=True)
class SkyEnvironment:
    """One environment.

    Attributes:
        site_packages: where its Python finds modules.
        found: how it was found, in words: `/home/me/.local/bin/sky`.
        has_package: whether alpaca-jobs is installed there; without it SkyPilot starts and recovers by its own rules.
    """

    site_packages: Path
    found: str
    has_package: bool


def own_environment() -> SkyEnvironment:
    """The environment of this very process."""
    return SkyEnvironment(Path(sysconfig.get_path("purelib")), f"this environment ({sys.prefix})", has_package=True)


def sky_environments(environ: Mapping[str, str] = os.environ) -> tuple[SkyEnvironment, ...]:
    """This environment, and every other one that SkyPilot would start its server from, or has; each once.

    Args:
        environ: PATH says where a shell finds `sky`, HOME whose list of plugins it is.
    """
    own = own_environment()
    found = {own.site_packages.resolve(): own}
    asked: set[Path] = {Path(sys.executable)}
    for python, words in [*_scripts(environ), *_servers(environ)]:
        if python in asked:
            continue
        asked.add(python)
        other = _ask(python, words)
        if other is not None:
            found.setdefault(other.site_packages.resolve(), other)
    return tuple(found.values())


def _scripts(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """The Python of every script `sky` on PATH that is SkyPilot's."""
    for folder in dict.fromkeys((environ.get("PATH") or os.defpath).split(os.pathsep)):
        script = Path(folder) / "sky"
        try:
            with script.open("rb") as file:
                text = file.read(_SCRIPT_BYTES).decode(errors="replace")
        except OSError:
            continue
        interpreter = _INTERPRETER.match(text)
        if interpreter is not None and re.search(r"^\s*(?:from|import) sky\b", text, re.MULTILINE):
            yield Path(interpreter[1]), str(script)


def _servers(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """The Python of every API server of SkyPilot that runs with this user's home."""
    home = environ.get("HOME") or str(Path.home())
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
            starts = any(tuple(line[at : at + 2]) == _SERVER for at in range(1, len(line)))
            if not starts or process.environ().get("HOME") != home:
                continue
            python = Path(line[0]) if Path(line[0]).is_absolute() else Path(process.exe())
        except (psutil.Error, OSError):
            continue  # it has ended, or is somebody else's
        yield python, f"SkyPilot's API server, which runs (pid {process.pid})"


def _ask(python: Path, words: str) -> SkyEnvironment | None:
    """What a Python says of its environment; None where it does not run, or has no SkyPilot to start."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _ASK], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_TIMEOUT_S, check=True,
        )  # fmt: skip
        site_packages, has_sky, has_package = done.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError) as exc:
        logger.debug("%s of %s does not say where its packages are: %s", python, words, exc)
        return None
    return SkyEnvironment(Path(site_packages), words, has_package == "True") if has_sky == "True" else None
