"""One cloud in a box for a test session, and the way its helpers are found (tests hold no packages)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cloudbox"))

if TYPE_CHECKING:
    from box import CloudBox

JOB = """
name: demo
store: {store}
data: {{num_rows: 48, teacher: offline, num_actors: 1, concurrency: 2, part_requests: 2}}
train: {{recipe: alpaca, model: tiny-llama, exactness: bits, global_batch_size: 16, micro_batch_size: 8,
        epochs: {epochs}, learning_rate: 3e-3, max_length: 256, dtype: float32}}
compute: {{infra: [{infra}], workers: 2}}
checkpoints: {{interval_steps: 3}}
"""


@pytest.fixture(scope="session")
def box() -> Iterator[CloudBox]:
    """A cloud with our plugin installed in SkyPilot's server."""
    from box import CloudBox
    from image import ImageNotBuilt, cloud_image
    from network import own_network

    try:
        cloud_image()
    except ImageNotBuilt as exc:
        pytest.skip(str(exc))
    folder = Path(tempfile.mkdtemp(prefix="ajbox-", dir="/tmp"))  # short: SkyPilot makes sockets below it
    try:
        with own_network(), CloudBox(folder) as running:
            yield running
    finally:
        if os.environ.get("ALPACA_JOBS_KEEP_BOX") is None:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cloud(box: CloudBox) -> Cloud:
    """The cloud's user at the command line."""
    return Cloud(box)


class Cloud:
    """What a user of the cloud does and sees."""

    def __init__(self, box: CloudBox) -> None:
        self.box = box

    def shell(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command as the user does; returns the CompletedProcess (text)."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, env=self.box.environ,
            cwd=self.box.folder,
        )  # fmt: skip

    def launch(self, *, epochs: int = 60) -> str:
        """Launch the demo job, detached; returns its id. 60 epochs are 180 steps, about 20 s on 2 quiet cores."""
        launched = self.try_launch(epochs=epochs)
        assert launched.returncode == 0, launched.stderr
        assert "has no alpaca-jobs plugin" not in launched.stderr
        assert len(launched.stdout.splitlines()) == 1  # what SkyPilot says is talk, not the result
        return launched.stdout.strip()

    def try_launch(self, *, epochs: int = 60) -> subprocess.CompletedProcess[str]:
        """Launch the demo job, detached."""
        self.box.client("s3").create_bucket(Bucket="runs")
        return self.shell("alpaca-jobs", "launch", self.job("aws", epochs=epochs), "--yes", "--detach", timeout=600)

    def job(self, infra: str, *, epochs: int = 60) -> str:
        """The same small job for a cloud or for this machine, as a file."""
        path = self.box.folder / f"{infra}.yaml"
        store = f"file://{self.box.folder}/runs" if infra == "local" else "s3://runs/here"
        path.write_text(JOB.format(store=store, infra=infra, epochs=epochs))
        return str(path)

    def status(self, run_id: str) -> dict[str, Any]:
        """How a run stands."""
        shown = self.shell("alpaca-jobs", "status", run_id, "--json")
        assert shown.returncode == 0, shown.stderr
        return dict(json.loads(shown.stdout))

    def keys(self, run_id: str, prefix: str) -> list[str]:
        """What lies below a prefix of a run, read in this thread (fsspec's own is on another network)."""
        found = self.box.client("s3").list_objects_v2(Bucket="runs", Prefix=f"here/{run_id}/{prefix}")
        return [one["Key"] for one in found.get("Contents", [])]

    def commits(self, run_id: str, prefix: str) -> int:
        """How many commits lie there."""
        return sum(key.endswith("manifest.json") for key in self.keys(run_id, prefix))
