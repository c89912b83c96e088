"""How long the command line makes you wait: whole processes, medians of 5, beside SkyPilot's own dry run.

    python benchmarks/cli.py [--repeats 5] [--without-skypilot]

`sky launch --dryrun` of the same machine is timed against SkyPilot's own API server, started before the clock runs, in
a throw-away HOME with moto as its AWS and the price snapshot of this package as its catalog. Where that does not start,
`sky --help` is timed and the reason is said. CPU time is shown beside the wall clock, because what else a machine does
shows in the one and not in the other. Prints a table, then each aim with `aim met: yes/no`; exits 1 on a no.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.price.offers import SNAPSHOT

REPO = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent
JOB = REPO / "alpaca_jobs" / "examples" / "alpaca-7b.yaml"
GPUS = "A100-80GB:8"
TASK = f"resources:\n  infra: aws\n  accelerators: {GPUS}\n  use_spot: true\nrun: echo done\n"
START_S = 180.0


@dataclass(frozen=True)
class Timing:
    """Medians over the repeats, seconds."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Aim:
    """Seconds to stay under, by the wall clock or by CPU time (which other work on the machine moves little)."""

    seconds: float
    of: Literal["wall", "CPU"]

    def is_met(self, found: Timing) -> bool:
        """Whether a command's timing stays under it."""
        return (found.wall_s if self.of == "wall" else found.cpu_s) < self.seconds

    def __str__(self) -> str:
        return f"under {self.seconds} s {self.of}"


AIMS = {
    "alpaca-jobs --help": Aim(0.4, "CPU"),
    "alpaca-jobs offers": Aim(1.5, "wall"),
    "alpaca-jobs estimate": Aim(1.5, "wall"),
}


def measure(command: list[str], environ: Mapping[str, str], repeats: int) -> Timing:
    """Run a command so many times, after once to warm the file cache; raises CalledProcessError when it fails."""
    walls, cpus = [], []
    for number in range(repeats + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=dict(environ), capture_output=True, stdin=subprocess.DEVNULL, check=True)
        wall_s, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if number:
            walls.append(wall_s)
            cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return Timing(statistics.median(walls), statistics.median(cpus))


def measure_ours(environ: Mapping[str, str], repeats: int) -> dict[str, Timing]:
    """The three that have an aim."""
    program = str(PROGRAMS / "alpaca-jobs")
    commands = {
        "alpaca-jobs --help": [program, "--help"],
        "alpaca-jobs offers": [program, "offers", "--gpus", GPUS],
        "alpaca-jobs estimate": [program, "estimate", str(JOB)],
    }
    return {name: measure(command, environ, repeats) for name, command in commands.items()}


def measure_skypilot(folder: Path, repeats: int) -> tuple[str, Timing, str]:
    """What was timed of SkyPilot, how long it took, and why it was not the dry run (empty if it was)."""
    sky = str(PROGRAMS / "sky")
    task = folder / "task.yaml"
    task.write_text(TASK, encoding="utf-8")
    try:
        with pretend_aws(folder) as environ:
            subprocess.run([sky, "check", "aws"], env=environ, capture_output=True, check=True, timeout=START_S)
            found = measure([sky, "launch", "--dryrun", "--yes", str(task)], environ, repeats)
            return "sky launch --dryrun", found, ""
    except (subprocess.SubprocessError, TimeoutError) as exc:
        said = (getattr(exc, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        why = f"{type(exc).__name__}: {said[-1] if said else exc}"
        return "sky --help", measure([sky, "--help"], user_environment(folder), repeats), why


@contextmanager
def pretend_aws(folder: Path) -> Iterator[dict[str, str]]:
    """SkyPilot's API server before moto's EC2; yields the environment of its user."""
    aws_port, sky_port = free_port(), free_sky_port()
    url = f"http://127.0.0.1:{aws_port}"
    environ = user_environment(folder) | {"SKYPILOT_API_SERVER_LOCAL_PORT": str(sky_port)}
    write_settings(folder, url)
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(spawn(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(aws_port)], folder, environ))
        wait_for(f"{url}/moto-api/", started[-1])
        server = ["-m", "sky.server.server", "--host=127.0.0.1", f"--port={sky_port}"]
        started.append(spawn(server, folder, environ | {"IS_SKYPILOT_SERVER": "true"}))
        wait_for(f"http://127.0.0.1:{sky_port}/api/health", started[-1])
        yield environ
    finally:
        end(started)


def user_environment(folder: Path) -> dict[str, str]:
    """A user who has nothing: no keys, no catalogs, no runs."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return kept | {
        "HOME": str(folder),
        "ALPACA_JOBS_HOME": str(folder / "alpaca-jobs"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_POD_MEMORY_GB_LIMIT": "3",
    }


def write_settings(folder: Path, url: str) -> None:
    """Keys that are none, moto's address, and this package's price snapshot as SkyPilot's catalog."""
    aws = folder / ".aws"
    aws.mkdir()
    (aws / "credentials").write_text("[default]\naws_access_key_id = x\naws_secret_access_key = x\n")
    (aws / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {url}\n")
    with (SNAPSHOT / "aws" / "vms.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    regions = sorted({row["Region"] for row in rows})
    images = [
        [f"skypilot:custom-{kind}", region, "ubuntu", "22.04", "ami-785db401", "20250910", "ami-785db401"]
        for region in regions
        for kind in ("cpu-ubuntu", "gpu-ubuntu", "gpu-ubuntu-cuda13")
    ]
    added = ("GpuInfo", "Arch")  # SkyPilot reads them; the snapshot went without
    tables = {
        "aws/vms.csv": [[*rows[0], *added], *([*row.values(), "", "x86_64"] for row in rows)],
        "aws/images.csv": [["Tag", "Region", "OS", "OSVersion", "ImageId", "CreationDate", "BaseImageId"], *images],
        "aws/instance_quota_mapping.csv": [
            ["AcceleratorName", "InstanceType", "Region", "OnDemandInstanceCode", "SpotInstanceCode"]
        ],
        "common/accelerators.csv": [["AcceleratorName", "Clouds"], ["A100-80GB", "['AWS']"]],
        "common/metadata.csv": [["GPU", "MemoryGB", "Manufacturer"], ["A100-80GB", "80", "nvidia"]],
    }
    for name, lines in tables.items():
        path = folder / ".sky" / "catalogs" / "v8" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(lines)


def spawn(arguments: list[str], folder: Path, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a Python program in a session of its own."""
    with (folder / "servers.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(environ),
            cwd=folder, start_new_session=True,
        )  # fmt: skip


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until an address answers; raises TimeoutError when it does not, or its process has ended."""
    give_up_at = time.monotonic() + START_S
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    ended = "" if process.poll() is None else f": its process ended with {process.returncode}"
    raise TimeoutError(f"{url} did not answer{ended}")


def end(started: list[subprocess.Popen[bytes]]) -> None:
    """End the servers and all that they started: every process of their sessions."""
    import psutil

    leaders = {process.pid for process in started}
    mine = [one for one in psutil.process_iter() if leaders & {session_of(one.pid)}]
    for one in mine:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    for process in started:
        process.wait()


def session_of(pid: int) -> int | None:
    """A process's session, None if it has ended."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def free_sky_port() -> int:
    """A port for SkyPilot's API server whose queue's port, which follows from it, is free as well.

    Source: sky/server/requests/queues/mp_queue.py of 0.14.1.
    """
    for port in range(47_000, 47_400):
        if is_free(port) and is_free(50_000 + (11 + port - 46_580) % 10_000):
            return port
    raise TimeoutError("no free pair of ports for SkyPilot's API server")


def is_free(port: int) -> bool:
    """Whether a port can be listened on."""
    with socket.socket() as tried:
        try:
            tried.bind(("", port))
        except OSError:
            return False
        return True


def main(say: Callable[[str], None] = print) -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-skypilot", action="store_true", help="time our own commands alone")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    say(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load average {load:.1f}")
    with tempfile.TemporaryDirectory(prefix="cli-bench-") as name:
        folder = Path(name)
        found = measure_ours(user_environment(folder), given.repeats)
        if not given.without_skypilot:
            what, timing, why = measure_skypilot(folder, given.repeats)
            found[what] = timing
            if why:
                say(f"`sky launch --dryrun` did not run here ({why}); `sky --help` was timed instead.")
    say(f"\n| command | median of {given.repeats}, wall | CPU | aim |\n|---|---:|---:|---|")
    for what, timing in found.items():
        aim = AIMS.get(what, "")
        say(f"| `{what}` | {timing.wall_s:.2f} s | {timing.cpu_s:.2f} s | {aim} |")
    say("")
    met = {what: aim.is_met(found[what]) for what, aim in AIMS.items()}
    for what, is_met in met.items():
        say(f"{what} answers, {AIMS[what]}: aim met: {'yes' if is_met else 'no'}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
