"""A run without a node: its job, its attempts as processes (row_driver.py), and what its teacher saw. A test helper."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_jobs.data.rows import Row
from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL
from alpaca_jobs.generation.recipe import make_recipe
from alpaca_jobs.generation.seeds import load_seed_tasks
from alpaca_jobs.generation.teacher_request import TeacherAnswer
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec, TeacherSpec
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.lineage import counting_commits
from checkpoints.reader import CommitReader, list_commits
from checkpoints.store import Store
from cluster.node.inputs import freeze_inputs, frozen_seed_tasks
from cluster.node.ledger import Ledger, count_asked

DRIVER = Path(__file__).with_name("row_driver.py")
CAPACITY = 4
PRICES = {"price_per_million_input_usd": 1.0, "price_per_million_output_usd": 2.0}


@dataclass
class RowRun:
    """One run without a node: its job, its attempts as processes, and what its teacher saw."""

    folder: Path
    name: str
    base_url: str
    num_rows: int
    budget_usd: float
    recipe: str = "alpaca"
    batch_requests: int = 0  # 0: asked directly
    attempts: int = 0
    answered: dict[int, float] = field(default_factory=dict)
    consumed: int = 0

    def __post_init__(self) -> None:
        teacher = {
            "model": OFFLINE_MODEL,
            "base_url": self.base_url,
            "api": "completions",
            "api_key_env": None,
            **PRICES,
            **({"batch_api": True, "batch_requests": self.batch_requests} if self.batch_requests else {}),
        }
        data = {
            "teacher": teacher, "num_rows": self.num_rows, "num_actors": 2, "concurrency": CAPACITY // 2,
            "part_requests": 3, "recipe": self.recipe,
        }  # fmt: skip
        self.job = JobSpec.model_validate(
            {"name": "kills", "data": data, "train": {"model": "tiny-llama"}, "compute": {"workers": 1},
             "limits": {"teacher_max_usd": self.budget_usd}}
        )  # fmt: skip
        root = lay_down(self.job, self.folder, self.name)
        self.root, self.store = root.uri, root.child(self.name)

    def start(self) -> subprocess.Popen[bytes]:
        self.attempts += 1
        command = [sys.executable, str(DRIVER), self.root, self.name, str(self.attempts), str(self.scratch)]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(command, stderr=log)

    @property
    def scratch(self) -> Path:
        return self.folder / f"{self.name}-scratch-{self.attempts}"

    def kill_after(
        self, process: subprocess.Popen[bytes], seconds: float, *, num_answers: int = 0, reserved: bool = True
    ) -> bool:
        """SIGKILL an attempt some time after it reserved requests and stored so many; says whether it still ran.

        With `reserved` False it has only claimed its number.
        """
        before = len(self.store.list("answers/"))
        sign = f"ledger/attempt-{self.attempts:06d}/" if reserved else f"attempts/{self.attempts:06d}.claim"
        while process.poll() is None and (
            not self.store.list(sign) or len(self.store.list("answers/")) < before + num_answers
        ):
            time.sleep(0.02)  # looking takes a while, and the attempt needs the processor
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        was_running = process.wait() == -signal.SIGKILL
        now = time.time()
        for key in self.store.list("answers/"):
            self.answered.setdefault(int(key.split("-")[1].split("/")[0]), now)
        return was_running

    def spent_usd(self) -> float:
        """What the ledger says, all attempts together."""
        assert isinstance(self.job.data.teacher, TeacherSpec)
        fence = Fence(AttemptLog(self.store, LAYOUT), self.attempts)
        ledger = Ledger(self.store, attempt=self.attempts, fence=fence, teacher=self.job.data.teacher)
        ledger.load()
        assert ledger.spent_usd is not None
        return ledger.spent_usd

    def rows(self) -> list[Row]:
        parts = counting_commits(AttemptLog(self.store, LAYOUT).records(), list_commits(self.store, LAYOUT), LAYOUT)
        lines = b"".join(CommitReader.open(self.store, LAYOUT, ref).read("rows.jsonl") for ref in reversed(parts))
        return [Row.from_json(json.loads(line)) for line in lines.splitlines()]

    def prompt_hashes(self) -> dict[str, int]:
        """The number of every request that was planned, by the hash of its prompt; all answers are consumed again."""
        recipe = make_recipe(self.job.data, load_seed_tasks(frozen_seed_tasks(self.store)), (), ())
        hashes: dict[str, int] = {}
        for number in range(1, count_asked(self.store).different + 1):
            while (request := recipe.request(number)) is None:
                key = min(self.store.list(f"answers/request-{self.consumed + 1:06d}/"))
                recipe.consume(TeacherAnswer.from_json(json.loads(self.store.get(key))["answer"]))
                self.consumed += 1
            hashes[hashlib.sha256(request.prompt.encode()).hexdigest()] = number
        return hashes


def lay_down(job: JobSpec, folder: Path, name: str = "run") -> Store:
    """What a launch leaves for the first node, in a new store below the folder: the job and its inputs."""
    root = Store.open(f"file://{folder}/store")
    run = root.child(name)
    run.put_once("job.json", {"job": job.model_dump(mode="json", by_alias=True)})
    freeze_inputs(job, run)
    return root


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def billed_usd(log: list[dict[str, Any]], *, share: float = 1.0) -> float:
    """What the teacher would have put on the bill; `share`: of the direct price."""
    used = [entry["usage"] for entry in log if entry["status"] == 200]
    return share * sum(one["prompt_tokens"] * 1.0 + one["completion_tokens"] * 2.0 for one in used) / 1e6
