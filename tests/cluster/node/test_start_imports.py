"""What a node and a training rank have loaded by the first step: counted, never timed, and paid by every recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

NODE = """
import json, sys
import cluster.node.main
from checkpoints.store import Store
Store.open("file:///tmp/nothing-is-written-there").child("run")
print(json.dumps(sorted(sys.modules)))
"""
MEMBER = """
import json, sys, types
from cluster.node.node_group import NodeGroup
from cluster.node.ray_runtime import import_ray
from cluster.node.ray_runtime_member import RayMember

class NoNode:
    def __init__(self, params, **given):
        print(json.dumps(params.gcs_address))

sys.modules["cluster.node.ray_runtime_small"] = types.SimpleNamespace(SmallNode=NoNode)
group = NodeGroup(1, ("127.0.0.1", "127.0.0.2"), 6479)
import_ray(group)
RayMember(num_cpus=1, group=group).join()
"""
RANK = """
import json, sys
from checkpoints.attempts import AttemptLog
from checkpoints.store import Store
from alpaca_jobs.data.rows import Row
from alpaca_jobs.run_layout import LAYOUT
from cluster.node.train_worker import TrainWorker, WorkerAssignment
from cluster.phase import read_marks
from pathlib import Path

folder, job = sys.argv[1], json.loads(sys.argv[2])
worker = TrainWorker(0)
worker.prepare(job)
prepared = set(sys.modules)
AttemptLog(Store.open(f"file://{folder}/store").child("run"), LAYOUT).claim(1, {})
rows = [Row(f"Add {n} and {n}.", "", f"It is {2 * n}.") for n in range(8)]
dataset = worker.tokenize(job, rows, folder)
result = worker.run(
    WorkerAssignment(job, f"file://{folder}/store", "run", 1, 1, f"file://{folder}/meeting", (), False, folder), dataset
)
assert (result.final_step, result.stopped_by) == (1, "done"), result
print(json.dumps([sorted(prepared), sorted(set(sys.modules) - prepared)]))
"""
JOB: dict[str, Any] = {
    "name": "small",
    "data": {"teacher": "offline", "num_rows": 8},
    "train": {
        "model": "tiny-llama", "exactness": "bits", "engine": "fsdp", "global_batch_size": 8, "micro_batch_size": 4,
        "max_steps": 1, "learning_rate": 3e-3, "max_length": 64, "dtype": "float32",
    },
    "compute": {"infra": ["local"], "workers": 1},
    "checkpoints": {"interval_steps": 1},
}  # fmt: skip


def run(program: str, *arguments: str) -> Any:
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environ, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def heavy(modules: list[str], names: tuple[str, ...]) -> list[str]:
    return [module for module in modules if module in names]


def test_a_node_begins_its_attempt_with_nothing_heavy_loaded() -> None:
    modules = run(NODE)
    assert heavy(modules, ("torch", "ray", "transformers", "fsspec", "aiohttp", "openai", "rich")) == []


def test_a_machine_that_joins_while_ray_is_still_being_imported_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "one-that-all-machines-know")
    assert run(MEMBER) == "127.0.0.1:6479"


def test_a_rank_makes_its_first_step_with_what_a_step_needs(tmp_path: Path) -> None:
    prepared, late = run(RANK, str(tmp_path), json.dumps(JOB))
    never = ("accelerate", "deepspeed", "peft", "pandas", "pyarrow", "sklearn", "scipy", "tensorboard", "click",
             "ray.train", "torch._dynamo.eval_frame", "torch._inductor", "transformers.trainer", "fsspec")  # fmt: skip
    assert heavy(prepared + late, never) == []
    assert len(heavy(prepared, ("torch.distributed.fsdp", "transformers.models.llama.modeling_llama"))) == 2
    assert len(late) <= 40, f"{len(late)} modules are loaded after `prepare`, where nothing overlaps: {late}"
