"""The disk that every pretend machine starts from: what a cloud's machine image would hold, and no wheel of ours.

    home/ubuntu/.local/bin/uv, skypilot-runtime/    what SkyPilot would fetch (its own Ray and libraries, and those that
                                                    our plugin asks for on a controller), and the patch
    home/ubuntu/alpaca-jobs-env/                    the libraries of `alpaca-jobs[node]`, from requirements.lock
    etc/                                            accounts, host key, what every session's environment says

Made once and kept in .venv, named after the lock and SkyPilot's version. The libraries are hard links into uv's cache
where that is on the same disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

_REPO = Path(__file__).resolve().parents[3]
_PROBE = Path(__file__).with_name("network_probe.py")
_UBUNTU = 1000  # uid and gid
_PYTHON = shutil.which("python3.11", path="/usr/bin:/usr/local/bin")  # one that every user may run
_RAY_OF_SKYPILOT = "2.9.3"  # sky.skylet.constants.SKY_REMOTE_RAY_VERSION of 0.14.1
_TELL_MAGIC = "import sys; from importlib.util import MAGIC_NUMBER; sys.stdout.buffer.write(MAGIC_NUMBER)"
_PASSWD = """root:x:0:0:root:/root:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash
"""
_GROUP = "root:x:0:\nsudo:x:27:ubuntu\nnogroup:x:65534:\nubuntu:x:1000:\n"
_SUDOERS = "root ALL=(ALL:ALL) ALL\nubuntu ALL=(ALL) NOPASSWD:ALL\n"


class ImageNotBuilt(Exception):
    """The image needs something that this machine lacks; the text says what."""


def cloud_image() -> Path:
    """The image's folder; made if it is not there yet (about a minute, once)."""
    lock = (_REPO / "requirements.lock").read_bytes() + (_REPO / "pyproject.toml").read_bytes()
    lock += Path(__file__).read_bytes() + _PROBE.read_bytes()
    name = hashlib.sha256(lock + version("skypilot").encode()).hexdigest()[:12]
    image = _REPO / ".venv" / f"cloud-box-image-{name}"
    with (image.parent / "cloud-box.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)  # until it is closed: who comes second finds the image made
        if not image.exists():
            for old in image.parent.glob("cloud-box-image-*"):
                shutil.rmtree(old)
            building = image.with_name(image.name.replace("image-", "building-"))
            shutil.rmtree(building, ignore_errors=True)
            _build(building)
            building.rename(image)
    return image


def _build(image: Path) -> None:
    home = image / "home" / "ubuntu"
    (home / ".local" / "bin").mkdir(parents=True)
    shutil.copy2(Path(sys.executable).with_name("uv"), home / ".local" / "bin" / "uv")
    for name in (".bashrc", ".profile"):
        (home / name).write_text('export PATH="$HOME/.local/bin:$PATH"\n')
    ray = (f"ray[default]=={_RAY_OF_SKYPILOT}", "pydantic-core==2.41.1", "click<8.3.0")
    skypilot = ("setuptools<70", "wheel", f"skypilot[aws,remote]=={version('skypilot')}")
    plugin = ("--requirement", "pyproject.toml", "boto3")
    # Copies, because SkyPilot patches its Ray on every machine, as the user `ubuntu`.
    _venv(home / "skypilot-runtime", "copy", *ray, *skypilot, *plugin)
    (site,) = (home / "skypilot-runtime" / "lib").glob("python3*/site-packages")
    shutil.copy2(_PROBE, site)
    # Most of what SkyPilot does on a machine is starting Python; looking for garbage meanwhile takes a sixth of that.
    (site / "rarely_collect.pth").write_text("import gc; gc.set_threshold(100_000)\n")
    extras = ("--extra", "node", "--constraint", "requirements.lock")
    _venv(home / "alpaca-jobs-env", "hardlink", "--requirement", "pyproject.toml", *extras)
    _etc(image / "etc")
    for folder, _, files in os.walk(image / "home"):
        os.chown(folder, _UBUNTU, _UBUNTU)  # not the files in the venvs: hard links share their owner with uv's cache
        for name in files:
            path = Path(folder, name)
            if path.stat(follow_symlinks=False).st_nlink == 1:
                os.chown(path, _UBUNTU, _UBUNTU, follow_symlinks=False)


def _venv(folder: Path, link_mode: str, *requirements: str) -> None:
    """A virtual environment with some packages, that works at any path."""
    if _PYTHON is None:
        raise ImageNotBuilt(f"SkyPilot's Ray {_RAY_OF_SKYPILOT} needs a Python 3.11 in /usr/bin or /usr/local/bin")
    script = """
        . .ci/pip_settings.sh; use_pip_settings "$1"; export UV_LINK_MODE="$5" VIRTUAL_ENV="$4"
        [ -e "$4" ] || "$2" venv --quiet --relocatable --seed --python "$3" "$4"
        "$2" pip install --quiet "${@:6}"
    """
    uv = Path(sys.executable).with_name("uv")
    command = ["bash", "-euc", script, "bash", sys.executable, str(uv), _PYTHON, str(folder), link_mode]

    def install(*words: str) -> None:
        done = subprocess.run([*command, *words], cwd=_REPO, capture_output=True, text=True)
        if done.returncode:
            raise ImageNotBuilt(f"{folder.name} could not be installed:\n{done.stdout}{done.stderr}")

    install(*requirements)
    take_bytecode(folder)
    # With bytecode, as on any machine where the environment was used before; else every machine compiles torch anew.
    install("--compile-bytecode", *requirements)


def take_bytecode(venv: Path) -> int:
    """Give every file that this process's environment has, too, the bytecode from there; returns how many.

    Compiling takes most of the time that an image takes to build. Bytecode names the version of Python, and the time
    and size of its source, to which it belongs (Lib/importlib/_bootstrap_external.py): the time is written anew.
    """
    told = subprocess.run([venv / "bin" / "python", "-c", _TELL_MAGIC], capture_output=True, check=True)
    (site,) = (venv / "lib").glob("python3*/site-packages")
    ours, taken = Path(sysconfig.get_paths()["purelib"]), 0
    if told.stdout != MAGIC_NUMBER:
        return taken
    for source in site.rglob("*.py"):
        same = ours / source.relative_to(site)
        compiled = Path(cache_from_source(str(same)))
        target, stat = Path(cache_from_source(str(source))), source.stat()
        if target.exists() or not compiled.exists() or not same.exists() or same.read_bytes() != source.read_bytes():
            continue
        body = compiled.read_bytes()
        if body[:8] != MAGIC_NUMBER + bytes(4) or body[8:12] != _four_bytes(int(same.stat().st_mtime)):
            continue  # of another version, or checked by its hash, or not of this source
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(body[:8] + _four_bytes(int(stat.st_mtime)) + _four_bytes(stat.st_size) + body[16:])
        taken += 1
    return taken


def _four_bytes(number: int) -> bytes:
    return (number & 0xFFFFFFFF).to_bytes(4, "little")


def _etc(folder: Path) -> None:
    folder.mkdir()
    shadow = "".join(f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in _PASSWD.splitlines())
    hosts = f"127.0.0.1 localhost {os.uname().nodename}\n"
    # Nothing on a machine may be fetched: what runs is what was shipped. The next two are what the user's own
    # environment says too (account.py), for a controller on a machine. SkyPilot runs a job below its Ray, which gives
    # way to others (nice 15): good on a machine of one's own, and starvation where all of them share this computer.
    session = "LANG=C.UTF-8 UV_OFFLINE=1 PIP_NO_BUILD_ISOLATION=false SKYPILOT_POD_MEMORY_GB_LIMIT=5 "
    session += "RAY_worker_niceness=0"
    texts = {"passwd": _PASSWD, "group": _GROUP, "shadow": shadow, "sudoers": _SUDOERS, "hosts": hosts}
    for name, text in {**texts, "session_environment": session}.items():
        (folder / name).write_text(text)
    (folder / "sudoers").chmod(0o440)
    (folder / "shadow").chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host_key")], check=True)
