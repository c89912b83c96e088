"""A cloud in a box for each process that tests, and the way its helpers are found (tests hold no packages).

Every process plays its scenarios one after the other: what SkyPilot does to one machine fills a CPU, and more at once
run into its limits of time.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cloudbox"))

if TYPE_CHECKING:
    from bills import Bill
    from box import CloudBox, Machine

_NUMBERS = itertools.count()
DOUBLE_BILLING_S = 60.0  # together, of machines beyond those that a run wants
LARGEST_RECORD = 1 << 20  # of the store's objects, what is text

JOB = """
name: demo
store: {store}
data: {{num_rows: {num_rows}, teacher: {teacher}, num_actors: 1, concurrency: 2, part_requests: 2}}
train: {{recipe: alpaca, model: tiny-llama, exactness: bits, global_batch_size: 16, micro_batch_size: 8,
        epochs: {epochs}, learning_rate: 3e-3, max_length: 256, dtype: float32}}
compute: {{infra: [{infra}], workers: {workers}{compute}}}
limits: {{{limits}}}
checkpoints: {{interval_steps: 3}}
secrets: [{secrets}]
"""


@pytest.fixture(scope="session")
def box(cannot_run: Callable[[str], NoReturn]) -> Iterator[CloudBox]:
    """A cloud with our plugin installed in SkyPilot's server."""
    from box import CloudBox
    from image import ImageNotBuilt, cloud_image
    from network import own_network

    try:
        cloud_image()
    except ImageNotBuilt as exc:
        cannot_run(str(exc))
    folder = Path(tempfile.mkdtemp(prefix="ajbox-", dir="/tmp"))  # short: SkyPilot makes sockets below it
    try:
        with own_network(), CloudBox(folder) as running:
            yield running
    finally:
        if os.environ.get("ALPACA_JOBS_KEEP_BOX") is None:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Beside a failure: what became of the cloud's runs and machines, since the box is gone afterwards."""
    report = yield
    if report.when == "call" and report.failed and "cloud" in getattr(item, "funcargs", {}):
        from aftermath import aftermath

        report.sections.append(("the cloud as it was left", aftermath(item.funcargs["cloud"])))
    return report


@pytest.fixture(autouse=True)
def _closed_network() -> None:
    """The box's network has no way out, so that nothing has to be refused here (tests/conftest.py does elsewhere)."""


@pytest.fixture
def cloud(box: CloudBox) -> Iterator[Cloud]:
    """The cloud's user at the command line; after every scenario nothing bills, and secrets are where they may be."""
    from account import SECRETS
    from secret_places import CommandLines, leaked_files, leaked_objects

    box.serve()  # as it is by default, whatever the test before left
    user = Cloud(box, f"user-{next(_NUMBERS)}")
    with CommandLines(SECRETS) as command_lines:
        yield user
    assert not box.machines()
    assert command_lines.looked_at > 0
    leaks = [*command_lines.leaks, *leaked_files(box.folder, box.home, SECRETS)]
    assert [*leaks, *leaked_objects(user.records(), SECRETS)] == []


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

    def begin(self, *command: str) -> subprocess.Popen[bytes]:
        """Begin a command as the user does; what it says goes to the files `out` and `err` of the folder.

        The box ends it, if nobody else has.
        """
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=self.box.environ, cwd=self.folder
            )

    def launch(self, **job: Any) -> str:
        """Launch the demo job (arguments of `job`), detached; returns its id."""
        launched = self.try_launch(**job)
        assert launched.returncode == 0, launched.stderr
        assert "has no alpaca-jobs plugin" not in launched.stderr
        assert len(launched.stdout.splitlines()) == 1  # what SkyPilot says is talk, not the result
        return launched.stdout.strip()

    def try_launch(self, **job: Any) -> subprocess.CompletedProcess[str]:
        """Launch the demo job, detached."""
        self.box.client("s3").create_bucket(Bucket="runs")
        return self.shell("alpaca-jobs", "launch", self.job("aws", **job), "--yes", "--detach")

    def job(
        self, infra: str, *, epochs: int = 36, num_rows: int = 48, teacher: str = "offline", workers: int = 1,
        compute: str = "", limits: str = "", secrets: str = "",
    ) -> str:  # fmt: skip
        """The same small job for a cloud or for this machine, as a file; an epoch of 48 rows is three steps.

        Args:
            compute: more of this part; begins with a comma. limits, secrets: all of these.
        """
        path = self.folder / f"{infra}.yaml"
        store = f"file://{self.box.folder}/runs" if infra == "local" else "s3://runs/here"
        path.write_text(
            JOB.format(store=store, infra=infra, epochs=epochs, num_rows=num_rows, teacher=teacher, workers=workers,
                       compute=compute, limits=limits, secrets=secrets)
        )  # fmt: skip
        return str(path)

    def status(self, run_id: str) -> dict[str, Any]:
        """How a run stands."""
        shown = self.shell("alpaca-jobs", "status", run_id, "--json")
        assert shown.returncode == 0, shown.stderr
        return dict(json.loads(shown.stdout))

    def machines(self, run_id: str) -> list[Machine]:
        """The run's machines that cost money."""
        return self.box.machines(run_id)

    def lose(self, run_id: str) -> Machine:
        """Take the run's only machine away without a word; returns which one that was."""
        (machine,) = self.box.machines(run_id, states=("running",))
        self.box.preempt(machine)
        return machine

    def settle(self, run_id: str, *, num_nodes: int = 1) -> list[Bill]:
        """Wait until no machine of a run is left; what all of them cost, by the pretend AWS's own records.

        Args:
            num_nodes: machines that work together; what goes beyond them was billed twice.
        """
        from bills import EVER, bill_of, billed_beyond_s
        from processes import wait_for

        wait_for(lambda: not self.machines(run_id), "end of the last machine", timeout_s=600)
        bills = [bill_of(one.region, one.said) for one in self.box.machines(run_id, states=EVER)]
        assert bills, f"{run_id} never had a machine"
        assert billed_beyond_s(bills, num_nodes, now_s=time.time()) <= DOUBLE_BILLING_S, bills
        return bills

    def receipt(self, run_id: str, bills: list[Bill]) -> dict[str, Any]:
        """A run's receipt; its machines cost what the pretend AWS would charge for them, within 1 %."""
        shown = self.shell("alpaca-jobs", "receipt", run_id, "--json")
        assert shown.returncode == 0, shown.stderr
        receipt = dict(json.loads(shown.stdout))
        machines = (one for one in receipt["lines"] if one["what"].startswith(("attempt", "machines")))
        told = sum(one["usd"] for one in machines if one["source"] == "the cloud's record")
        assert told == pytest.approx(sum(bill.usd(now_s=time.time()) for bill in bills), rel=0.01)
        return receipt

    def keys(self, run_id: str, prefix: str) -> list[str]:
        """What lies below a prefix of a run, read in this thread (fsspec's own is on another network)."""
        found = self.box.client("s3").list_objects_v2(Bucket="runs", Prefix=f"here/{run_id}/{prefix}")
        return [one["Key"] for one in found.get("Contents", [])]

    def records(self) -> Iterator[tuple[str, bytes]]:
        """Every object of the store that is not a block of numbers."""
        s3 = self.box.client("s3")
        if "runs" not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
            return
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket="runs"):
            for one in page.get("Contents", []):
                if one["Size"] <= LARGEST_RECORD:
                    yield one["Key"], self.read_bytes(one["Key"])

    def read(self, run_id: str, key: str) -> Any:
        """A JSON object of a run."""
        return json.loads(self.read_bytes(f"here/{run_id}/{key}"))

    def read_bytes(self, key: str) -> bytes:
        """An object, by its whole key."""
        return bytes(self.box.client("s3").get_object(Bucket="runs", Key=key)["Body"].read())

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
