"""One cloud in a box for a test session, and the way its helpers are found (tests hold no packages).

Scenarios marked `together` run side by side in that box, a few at a time, because most of their time is waiting: the
first of them that is reached starts them all, and each test then waits for its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cloudbox"))

if TYPE_CHECKING:
    from box import CloudBox, Machine

_SIDE_BY_SIDE = 3
_RUNNING: pytest.StashKey[dict[str, Future[Any]]] = pytest.StashKey()

JOB = """
name: demo
store: {store}
data: {{num_rows: 48, teacher: offline, num_actors: 1, concurrency: 2, part_requests: 2}}
train: {{recipe: alpaca, model: tiny-llama, exactness: bits, global_batch_size: 16, micro_batch_size: 8,
        epochs: {epochs}, learning_rate: 3e-3, max_length: 256, dtype: float32}}
compute: {{infra: [{infra}], workers: 2{compute}}}
limits: {{{limits}}}
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


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "together: a scenario that shares the cloud in a box with others")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Start all chosen scenarios at the first one; wait for this one's."""
    if pyfuncitem.get_closest_marker("together") is None:
        return None
    session, box = pyfuncitem.session, pyfuncitem.funcargs["box"]
    if _RUNNING not in session.stash:
        pool = ThreadPoolExecutor(_SIDE_BY_SIDE)  # started here, so that its threads are in the box's network
        chosen = [item for item in session.items if item.get_closest_marker("together") is not None]
        session.stash[_RUNNING] = {
            item.nodeid: pool.submit(_play, item.obj, box, Cloud(box, f"scenario-{number}"))
            for number, item in enumerate(chosen)
            if isinstance(item, pytest.Function)
        }
        pool.shutdown(wait=False)
    session.stash[_RUNNING][pyfuncitem.nodeid].result()
    return True


def _play(scenario: Callable[..., None], box: CloudBox, cloud: Cloud) -> None:
    """Play one; what goes wrong is written down at once, not only when its turn to be reported comes."""
    try:
        scenario(box=box, cloud=cloud)
    except BaseException:
        (cloud.folder / "failure.txt").write_text(traceback.format_exc())
        raise


@pytest.fixture(autouse=True)
def _closed_network() -> None:
    """The box's network has no way out, so that nothing has to be refused here (tests/conftest.py does elsewhere)."""


@pytest.fixture
def cloud(box: CloudBox) -> Cloud:
    """The cloud's user at the command line."""
    return Cloud(box, "alone")


class Cloud:
    """What a user of the cloud does and sees.

    Args:
        name: of the user's folder in the box.
    """

    def __init__(self, box: CloudBox, name: str) -> None:
        self.box, self.folder = box, box.folder / name
        self.folder.mkdir(exist_ok=True)

    def shell(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a command as the user does; returns the CompletedProcess (text)."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, env=self.box.environ,
            cwd=self.folder,
        )  # fmt: skip

    def launch(self, *, epochs: int = 36, compute: str = "", limits: str = "") -> str:
        """Launch the demo job, detached; returns its id. 36 epochs are 108 steps, about 12 s on 2 quiet cores."""
        launched = self.try_launch(epochs=epochs, compute=compute, limits=limits)
        assert launched.returncode == 0, launched.stderr
        assert "has no alpaca-jobs plugin" not in launched.stderr
        assert len(launched.stdout.splitlines()) == 1  # what SkyPilot says is talk, not the result
        return launched.stdout.strip()

    def try_launch(self, *, epochs: int = 36, compute: str = "", limits: str = "") -> subprocess.CompletedProcess[str]:
        """Launch the demo job, detached."""
        self.box.client("s3").create_bucket(Bucket="runs")
        job = self.job("aws", epochs=epochs, compute=compute, limits=limits)
        return self.shell("alpaca-jobs", "launch", job, "--yes", "--detach")

    def job(self, infra: str, *, epochs: int = 36, compute: str = "", limits: str = "") -> str:
        """The same small job for a cloud or for this machine, as a file; `compute` begins with a comma."""
        path = self.folder / f"{infra}.yaml"
        store = f"file://{self.box.folder}/runs" if infra == "local" else "s3://runs/here"
        path.write_text(JOB.format(store=store, infra=infra, epochs=epochs, compute=compute, limits=limits))
        return str(path)

    def status(self, run_id: str) -> dict[str, Any]:
        """How a run stands."""
        shown = self.shell("alpaca-jobs", "status", run_id, "--json")
        assert shown.returncode == 0, shown.stderr
        return dict(json.loads(shown.stdout))

    def machines(self, run_id: str) -> list[Machine]:
        """The run's machines that cost money."""
        return self.box.machines(run_id)

    def bought(self, run_id: str) -> list[Machine]:
        """Every machine that the run ever had, gone ones too, in the order of their purchase.

        The first is where the plan begins. An attempt may begin elsewhere: on a busy computer a machine may be too slow
        for SkyPilot, which then gives it back and asks the next region, and that is right.
        """
        every = self.box.machines(run_id, states=("pending", "running", "stopping", "shutting-down", "terminated"))
        return sorted(every, key=lambda machine: machine.said["LaunchTime"])

    def lose(self, run_id: str) -> Machine:
        """Take the run's only machine away without a word; returns which one that was."""
        (machine,) = self.box.machines(run_id, states=("running",))
        self.box.preempt(machine)
        return machine

    def keys(self, run_id: str, prefix: str) -> list[str]:
        """What lies below a prefix of a run, read in this thread (fsspec's own is on another network)."""
        found = self.box.client("s3").list_objects_v2(Bucket="runs", Prefix=f"here/{run_id}/{prefix}")
        return [one["Key"] for one in found.get("Contents", [])]

    def read(self, run_id: str, key: str) -> Any:
        """A JSON object of a run."""
        return json.loads(self.box.client("s3").get_object(Bucket="runs", Key=f"here/{run_id}/{key}")["Body"].read())

    def attempt(self, run_id: str, number: int, record: str) -> dict[str, Any]:
        """A record of an attempt (claim, base, end); empty before it is there."""
        key = f"attempts/{number:06d}.{record}.json"
        return dict(self.read(run_id, key)) if self.keys(run_id, key) else {}

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """All that was told of a run, by whomever."""
        told = (self.read(run_id, key.partition(f"{run_id}/")[2]) for key in self.keys(run_id, "events/"))
        return [event for batch in told for event in batch["events"]]

    def has_waited(self, run_id: str) -> bool:
        """Whether somebody said that no region has a machine."""
        return "No capacity in " in json.dumps(self.events(run_id))

    def commits(self, run_id: str, prefix: str) -> int:
        """How many commits lie there."""
        return sum(key.endswith("manifest.json") for key in self.keys(run_id, prefix))
