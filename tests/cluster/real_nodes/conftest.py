"""Real nodes, with Ray, torch and the offline teacher, started one attempt at a time without a supervisor."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.data.rows import Row, parse_rows
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from checkpoints.attempts import AttemptLog
from checkpoints.keys import CommitRef
from checkpoints.lineage import counting_commits
from checkpoints.reader import list_commits
from checkpoints.store import Store
from cluster.backend import Handle
from cluster.exits import reason_of_exit
from cluster.local.backend import LocalBackend
from cluster.node.inputs import freeze_inputs
from cluster.plan import LaunchPlan, Placement, Pricing
from cluster.process_tree import find_marked, kill_marked
from cluster.recovery import StopReason
from cluster.runs.home import Home
from cluster.runs.run_ids import new_run_id


@dataclass
class NodeBench:
    """One run in a folder of its own, whose attempts the test starts, stops and looks at."""

    folder: Path
    handles: list[Handle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.backend = LocalBackend(Home(self.folder / "home"))

    def create(self, *, num_rows: int | None = None, **changes: Any) -> None:
        """Make the run: its job, its inputs. `changes` replace parts of a small job, by section.

        With `num_rows` that many rows exist already, and nothing is generated.
        """
        body: dict[str, Any] = {
            "data": {"teacher": "offline", "num_rows": 64, "num_actors": 1, "concurrency": 2, "part_requests": 1},
            "train": {
                "model": "tiny-llama", "exactness": "bits", "global_batch_size": 8, "micro_batch_size": 4,
                "epochs": 20, "learning_rate": 3e-3, "max_length": 128, "dtype": "float32",
            },
            "compute": {"workers": 2},
            "checkpoints": {"interval_steps": 3},
        }  # fmt: skip
        for section, values in changes.items():
            body[section] = {**body.get(section, {}), **values} if isinstance(values, dict) else values
        if num_rows is not None:
            rows = [
                {"instruction": f"Add {n} and {n}.", "input": "", "output": f"It is {2 * n}."} for n in range(num_rows)
            ]
            (self.folder / "rows.json").write_text(json.dumps(rows))
            body["data"] = {"from": str(self.folder / "rows.json")}
        job = JobSpec.model_validate({"name": "small", **body})
        place = Placement("local", "a", None, "process", Pricing.SPOT, 0.0, job.compute.num_nodes)
        uri = Store.open(f"file://{self.folder}/store").uri
        self.plan = LaunchPlan(new_run_id("small"), job, uri, (place,), 2, "0+test")
        self.store = Store.open(uri).child(self.plan.run_id)
        self.log = AttemptLog(self.store, LAYOUT)
        self.store.put_once("job.json", self.plan.to_json())
        freeze_inputs(job, self.store)

    def start(self, attempt: int = 1) -> Handle:
        handle = self.backend.launch(self.plan, self.plan.candidates[0], attempt)
        self.handles.append(handle)
        return handle

    def wait_for(
        self, look: Callable[[], Any], what: str, *, timeout_s: float = 240.0, every_s: float = 0.05
    ) -> Any:  # fmt: skip
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            if found := look():
                return found
            time.sleep(every_s)
        said = self.backend.logs(self.handles[-1]).decode(errors="replace")[-3000:] if self.handles else ""
        return pytest.fail(f"no {what} within {timeout_s:.0f} s; the node said:\n{said}")

    def wait_reached(self, handle: Handle, stage: str, position: int, *, timeout_s: float = 240.0) -> int:
        """Wait until the node has made this much of a stage; returns how far it is."""

        def look() -> int | None:
            marks = self.backend.marks(handle)
            if marks and marks.reached and marks.reached[0] == stage and marks.reached[1] >= position:
                return marks.reached[1]
            return None

        return int(self.wait_for(look, f"{stage} {position}", timeout_s=timeout_s))

    def wait_exit(self, handle: Handle, *, timeout_s: float = 240.0) -> StopReason:
        """Wait for the node's end; returns what its exit code says. What the node said is shown if the test fails."""
        self.wait_for(lambda: not self.backend.status(handle).is_running, "exit of the node", timeout_s=timeout_s)
        sys.stderr.write(self.backend.logs(handle).decode(errors="replace")[-3000:])
        return reason_of_exit(self.backend.status(handle).exit_code)

    def end_of(self, attempt: int) -> dict[str, Any]:
        record = next(record for record in self.log.records() if record.number == attempt)
        assert record.end is not None
        return dict(record.end)

    def base_of(self, attempt: int) -> CommitRef | None:
        record = next(record for record in self.log.records() if record.number == attempt)
        assert record.has_base
        return record.base

    def commits(self, stage: str) -> list[CommitRef]:
        """Commits of a stage that count, newest first."""
        found = counting_commits(self.log.records(), list_commits(self.store, LAYOUT), LAYOUT)
        return [ref for ref in found if ref.stage == stage]

    def rows_of(self, part: CommitRef) -> tuple[Row, ...]:
        return parse_rows(self.store.get(LAYOUT.commit_prefix(part) + "rows.jsonl"), str(part))

    def signal_tree(self, handle: Handle, number: signal.Signals) -> None:
        for process in find_marked(handle.nonce):
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue

    def supersede(self, attempt: int) -> None:
        """Make the next attempt the newest one, as a successor would: claim, then base."""
        newest = next(iter([*self.commits("train"), *self.commits("generate")]), None)
        self.log.claim(attempt, {})
        self.log.put_base(attempt, newest)

    def contents(self) -> dict[str, str]:
        """Digest of every object of the run except what is only information: events and the lease."""
        keys = [key for key in self.store.list() if not key.startswith("events/") and ".lease." not in key]
        return {key: hashlib.sha256(self.store.get(key)).hexdigest() for key in keys}

    def clean(self) -> None:
        for handle in self.handles:
            self.signal_tree(handle, signal.SIGCONT)
            kill_marked(handle.nonce)
            self.backend.kill(handle)

    def wait_gone(self, handle: Handle, what: str, *, timeout_s: float = 240.0) -> None:
        """Wait until none of a node's processes is left; a look goes through every process of this computer."""
        self.wait_for(lambda: not find_marked(handle.nonce), what, timeout_s=timeout_s, every_s=0.3)


@contextmanager
def _bench(folder: Path) -> Iterator[NodeBench]:
    given = NodeBench(folder)
    try:
        yield given
    finally:
        given.clean()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[NodeBench]:
    with _bench(tmp_path) as given:
        yield given


@pytest.fixture(scope="session")
def make_bench() -> Callable[[Path], AbstractContextManager[NodeBench]]:
    """`with make_bench(folder) as bench`: for a run that several tests look at."""
    return _bench
