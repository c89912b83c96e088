"""What all S3 servers of the tests have in common: a program on 127.0.0.1, started, waited for, stopped by its pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
INSTALLED = REPO / ".venv" / "s3-servers"
"""Where .ci/s3_servers.sh puts what Debian does not have."""
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
_READY_S = 90.0  # a machine that runs everything else too
BUCKET = "bucket"


@dataclass(frozen=True)
class S3Server:
    """A running server with the bucket `bucket`, and the one identity that may use it."""

    endpoint: str
    key: str = "test-key"
    secret: str = "test-secret"

    @property
    def options(self) -> dict[str, str]:
        """storage_options for Store.open."""
        return {"endpoint_url": self.endpoint, "key": self.key, "secret": self.secret}

    @property
    def environ(self) -> dict[str, str]:
        """The same for a process of its own."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def create_bucket(self) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()


def program(name: str, installed: str = "") -> str:
    """The path of a program: of this machine, or what was installed for the tests.

    Without it the test is skipped; in CI (CI=true) it fails, so that nothing stops being shown unseen.
    """
    found = str(INSTALLED / installed) if installed else shutil.which(name, path=_PATH)
    if found is None or not os.access(found, os.X_OK):
        words = f"{name} is not installed; as root on Debian: bash .ci/s3_servers.sh"
        if os.environ.get("CI") == "true":
            pytest.fail(words, pytrace=False)
        pytest.skip(words)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], folder: Path, environ: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The command while the block lasts. It dies with us too, however we die; what it says is in folder/*.out."""
    with (folder / f"{Path(command[0]).name}.out").open("wb") as said:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={**os.environ, **(environ or {})},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()  # nothing that it holds outlives the tests
            process.wait(timeout=30)


def wait_until_it_answers(endpoint: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Return once HTTP is answered, with whatever status.

    Raises:
        RuntimeError: the process ended, or nothing answered in time; says what it had to say.
    """
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return
        except OSError:
            time.sleep(0.05)  # nobody listens yet
    said = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(folder.glob("*.out")))
    state = "runs" if process.poll() is None else f"ended with {process.returncode}"
    raise RuntimeError(f"{endpoint} did not answer within {_READY_S:.0f} s; its process {state}:\n{said}")
