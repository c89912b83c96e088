"""The drill on the demo's own job, shortened (another world size; tests/cli has the same bits), and on jobs of other
kinds: adapters, DeepSpeed on two machines, a command; the last one's model has a bit flipped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from alpaca_jobs.examples import example_text
from alpaca_jobs.run_layout import LAYOUT
from alpaca_jobs.spec import JobSpec
from alpaca_jobs.spec_io import parse_job
from checkpoints.keys import CommitRef
from cluster.launch.drill import run_drill
from cluster.runs.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def demo(tmp_path: Path) -> JobSpec:
    job = parse_job(example_text("demo"), "demo.yaml")
    return job.model_copy(update={"store": f"file://{tmp_path}/store"})


def shortened(job: JobSpec, *, max_steps: int) -> JobSpec:
    data = job.data.model_copy(update={"num_rows": 40})
    return job.model_copy(update={"data": data, "train": job.train.model_copy(update={"max_steps": max_steps})})


def test_another_world_size_after_the_kill_trains_on_the_same_batches(demo: JobSpec, tmp_path: Path) -> None:
    result = run_drill(
        shortened(demo, max_steps=12), kills=1, seed=1, world_sizes=(2, 1), home=Home(tmp_path / "home"),
        on_event=lambda *_: None,
    )  # fmt: skip
    assert result.attempts == 2
    assert (result.rows_lost, result.rows_duplicated, result.corrupt_resumes) == (0, 0, 0)
    assert 0 < result.largest_loss_difference < 1e-4


QUICK_TRAINING = """
import os, struct
from pathlib import Path
output = Path(os.environ["ALPACA_JOBS_OUTPUT"])
head = b'{"w":{"dtype":"U8","shape":[4096],"data_offsets":[0,4096]}}'
(output / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(range(256)) * 16)
(output / "config.json").write_text("{}")
with open(os.environ["ALPACA_JOBS_PROGRESS"], "a") as progress:
    progress.write('{"step": 1, "loss": 2.0, "total_steps": 1}\\n')
"""


def test_one_flipped_bit_of_the_killed_runs_model_is_not_bit_identical(tmp_path: Path) -> None:
    """A command that only writes its model: how a run trained is nothing to the comparison."""

    def flip_a_bit(run: str, what: Any) -> None:
        if run == "killed" and getattr(what, "kind", None) == "end":
            found = tmp_path.glob(f"store/*/{LAYOUT.commit_prefix(CommitRef('export', 0, 1))}model.safetensors")
            weights = max(found, key=lambda one: one.stat().st_mtime)
            data = bytearray(weights.read_bytes())
            data[-1000] ^= 0b100
            weights.write_bytes(data)

    (tmp_path / "train.py").write_text(QUICK_TRAINING)
    train = {"method": "command", "command": [sys.executable, "train.py"], "files": [str(tmp_path / "train.py")]}
    job = small_job(tmp_path, train={**train, "model": "tiny-llama", "max_steps": 1}, compute={"workers": 1})
    drills = [
        run_drill(job, kills=0, home=Home(tmp_path / "home"), on_event=on_event)
        for on_event in (lambda *_: None, flip_a_bit)
    ]
    for result in drills:
        assert result.losses_digest[0] == result.losses_digest[1]
    assert [result.weights_digest[0] == result.weights_digest[1] for result in drills] == [True, False]
    assert [result.bit_identical for result in drills] == [True, False]


KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"train": {"method": "lora", "learning_rate": 1e-2}, "compute": {"workers": 2}},
    "deepspeed on two machines": {"train": {"engine": "deepspeed-zero2"}, "compute": {"workers": 1, "num_nodes": 2}},
}


def small_job(folder: Path, *, train: dict[str, Any], compute: dict[str, Any]) -> JobSpec:
    """A job over rows that exist, with its store below a folder."""
    rows = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"It is {2 * n}."} for n in range(48)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return JobSpec.model_validate(
        {
            "name": "small",
            "store": f"file://{folder}/store",
            "data": {"from": str(folder / "rows.json")},
            "train": train,
            "compute": {"infra": ["local"], "regions": ["a", "b"], **compute},
            "checkpoints": {"interval_steps": 3},
        }
    )


@pytest.mark.parametrize("kind", KINDS)
def test_jobs_of_other_kinds_end_with_the_bits_of_an_undisturbed_run(kind: str, tmp_path: Path) -> None:
    train = {
        "model": "tiny-llama", "exactness": "bits", "global_batch_size": 8, "micro_batch_size": 4, "max_steps": 12,
        "learning_rate": 3e-3, "max_length": 128, "dtype": "float32", **KINDS[kind]["train"],
    }  # fmt: skip
    job = small_job(tmp_path, train=train, compute=KINDS[kind]["compute"])
    result = run_drill(job, kills=1, seed=1, home=Home(tmp_path / "home"), on_event=lambda *_: None)
    assert (result.kills, result.kills_by_phase) == (1, {"step": 1}) or result.kills_by_phase == {"save": 1}
    assert result.attempts >= 2
    assert result.lost_steps_in_bound
    assert (result.bit_identical, result.corrupt_resumes, result.largest_loss_difference) == (True, 0, 0.0)
