"""Runs with real supervisors and real node processes, but without Ray and torch (fake_node.py)."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from alpaca_jobs.spec import JobSpec
from checkpoints.store import Store
from cluster.backend import Handle
from cluster.events import Event
from cluster.launch.following import follow_run
from cluster.launch.launching import resume_run, start_run
from cluster.launch.stopping import remove_run
from cluster.local.backend import LocalBackend
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.process_tree import find_nodes, kill_marked
from cluster.runs.home import Home
from cluster.runs.run_ids import new_run_id
from cluster.runs.run_view import RunView, view_run
from cluster.runs.session import Timing

FAKE_NODE = Path(__file__).with_name("fake_node.py")
TIMING = Timing(
    poll_s=0.05,
    store_poll_s=0.2,
    lease_s=3.0,
    lease_interval_s=0.2,
    claim_s=20.0,
    notice_s=5.0,
    store_patience_s=10.0,
    restart_s=0.5,
)


@dataclass
class Runs:
    """Starts runs in a folder of their own, and knows how to wait for them."""

    folder: Path
    run_ids: list[str] = field(default_factory=list)

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    @property
    def root(self) -> Store:
        return Store.open(f"file://{self.folder}/store")

    @property
    def backend(self) -> LocalBackend:
        return LocalBackend(self.home)

    def plan(self, *, regions: str = "abc", price: float = 0.0, **job: Any) -> LaunchPlan:
        rows = self.folder / "rows.json"
        rows.write_text('[{"instruction": "Say hello.", "input": "", "output": "Hello."}]')
        body = {
            "name": "fake", "data": {"from": str(rows)}, "train": {"model": "tiny-llama"}, **job,
            "compute": {"workers": 1, **job.get("compute", {})},
        }  # fmt: skip
        spec = JobSpec.model_validate(body)
        places = tuple(Placement("local", region, None, "process", Pricing.SPOT, price, 1) for region in regions)
        run_id = new_run_id("fake")
        self.run_ids.append(run_id)
        return LaunchPlan(run_id, spec, self.root.uri, places, 1, "0+test")

    def command(self, behaviour: dict[str, Any]) -> list[str]:
        return [sys.executable, str(FAKE_NODE), json.dumps(behaviour)]

    def start(self, behaviour: dict[str, Any], *, notice_s: float = 5.0, **plan: Any) -> str:
        timing = replace(TIMING, notice_s=notice_s, first_backoff_s=0.3)
        return start_run(self.plan(**plan), self.home, timing=timing, node_command=self.command(behaviour))

    def resume(self, run_id: str, behaviour: dict[str, Any], **how: Any) -> str:
        return resume_run(self.root, run_id, self.home, timing=TIMING, node_command=self.command(behaviour), **how)

    def follow(self, run_id: str, since: str = "") -> list[Event]:
        return list(follow_run(self.root, run_id, self.home, since=since, poll_s=0.05))

    def view(self, run_id: str) -> RunView:
        is_alive = self.home.run(run_id).supervisor_pid() is not None
        return view_run(self.root, run_id, is_alive=is_alive, sample_s=TIMING.sample_s)

    def remove(self, run_id: str) -> int:
        return remove_run(self.root, run_id, self.home, timing=TIMING)

    def node(self, run_id: str, *, attempt: int, step: int = 1) -> Handle:
        """Wait for the attempt's node to have made this many steps."""

        def look() -> Handle | None:
            for handle in self.backend.find(run_id):
                marks = self.backend.marks(handle)
                if handle.attempt == attempt and marks and marks.reached and marks.reached[1] >= step:
                    return handle
            return None

        return wait_for(look, f"attempt {attempt} at step {step}")

    def capacity(self, **counts: int) -> None:
        self.home.root.mkdir(parents=True, exist_ok=True)
        temporary = self.home.root / "capacity.tmp"
        temporary.write_text(json.dumps({f"local/{region}": count for region, count in counts.items()}))
        temporary.replace(self.home.root / "capacity.json")

    def kill_supervisor(self, run_id: str, number: signal.Signals = signal.SIGKILL) -> None:
        pid = self.home.run(run_id).supervisor_pid()
        assert pid is not None
        os.kill(pid, number)
        wait_for(lambda: self.home.run(run_id).supervisor_pid() is None, "the supervisor's end")

    def clean(self) -> None:
        for run_id in self.run_ids:
            if (pid := self.home.run(run_id).supervisor_pid()) is not None:
                psutil.Process(pid).kill()
        for node in find_nodes():
            if node.run_id in self.run_ids:
                kill_marked(node.nonce)


def wait_for(look: Callable[[], Any], what: str, *, timeout_s: float = 30.0) -> Any:
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        if found := look():
            return found
        time.sleep(0.02)
    pytest.fail(f"no {what} within {timeout_s:.0f} s")


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    given = Runs(tmp_path)
    yield given
    given.clean()
