"""One rank of a training, as a process of its own: `python rank_worker.py PLAN.json RANK`; used by test_resume.py.

PLAN is {"world_size", "meeting_point", "runs": [...], "answers"}; a run is {"name", "store", "attempt", "train", ...},
and all runs go one after the other in the same processes, because starting processes costs more than the training.
Answers are written as JSON to "<answers>-<rank>.json".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from alpaca_jobs.data.rows import Row
from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training import making
from alpaca_jobs.training.collate import Layout
from alpaca_jobs.training.control import TrainContext, TrainResult
from alpaca_jobs.training.engines import fsdp
from alpaca_jobs.training.evaluation import EvaluationReport
from alpaca_jobs.training.loop import run_training
from alpaca_jobs.training.metrics import StepMetrics
from alpaca_jobs.training.recipes import build_tokenizer, prepare_rows
from alpaca_jobs.training.tokenizer import load_tokenizer
from checkpoints.errors import CheckpointError
from checkpoints.keys import CommitRef, Stage
from checkpoints.keys import Layout as KeyLayout
from checkpoints.reader import list_commits
from checkpoints.store import Store
from checkpoints.torch_bridge import Checkpointer, SaveResult

_choose_layout = making.choose_layout
LAYOUT = KeyLayout((Stage("train", "checkpoints", "step-", 8),))


def rows(number: int) -> list[Row]:
    """Rows by rule, of lengths from 25 to 70 tokens."""
    words = ["red", "green", "blue", "dog", "cat", "tree", "river", "song", "light", "stone", "apple", "sky"]
    made = []
    for i in range(number):
        first, second = words[i * 5 % 12], words[i * 7 % 11]
        instruction = f"Write the words {first} and {second} in reverse order{', please' * (i % 4)}."
        made.append(Row(instruction, f"{first}, {second}" if i % 3 == 0 else "", f"They are {second} and {first}."))
    return made


class Control:
    """A node's side of the seam: remembers what it is told, and gives a notice or a stop at a planned step."""

    def __init__(self, run: dict[str, Any], rank: int) -> None:
        self._run, self._rank = run, rank
        self._asked_notice = self._asked_stop = run.get("start", 0)
        self.loaded_ref: CommitRef | None = None
        self.fallbacks: list[str] = []
        self.was_loaded = False
        self.metrics: list[StepMetrics] = []
        self.saves: list[SaveResult] = []
        self.evaluations: list[EvaluationReport] = []
        self.num_begun = 0

    def loaded(self, ref: CommitRef | None, fallbacks: Sequence[str]) -> None:
        self.loaded_ref, self.fallbacks, self.was_loaded = ref, list(fallbacks), True

    def stepped(self, metrics: StepMetrics) -> None:
        self.metrics.append(metrics)

    def saved(self, result: SaveResult) -> None:
        self.saves.append(result)

    def evaluating(self) -> None:
        self.num_begun += 1

    def evaluated(self, report: EvaluationReport) -> None:
        self.evaluations.append(report)

    def notice(self) -> float | None:
        self._asked_notice += 1
        planned = self._run.get("notice")
        if planned and planned["rank"] == self._rank and self._asked_notice >= planned["step"]:
            return float(planned["seconds"])
        return None

    def stop_requested(self) -> bool:
        self._asked_stop += 1
        return bool(self._run.get("stop_on_rank", 0) == self._rank and self._asked_stop == self._run.get("stop_at"))


def use_layout(layout: str, patch: Callable[[object, str, object], None] = setattr) -> None:
    """Let models be trained in a layout, whichever the trial would choose; `rows` is chosen, and has to be."""

    def choose(model: Any, **given: Any) -> Layout:
        if layout != Layout.ROWS:
            return Layout(layout)
        chosen = _choose_layout(model, **given)
        assert chosen is Layout.ROWS
        return chosen

    patch(making, "choose_layout", choose)


def train_once(run: dict[str, Any], *, rank: int, world_size: int) -> dict[str, Any]:
    """Run one planned training; returns what happened as JSON. An error of ours is an answer, too."""
    train = TrainSpec(**run["train"])
    made = rows(run.get("num_rows", 40))
    files = build_tokenizer(train, made)
    tokenizer = load_tokenizer(files)
    store = Store.open(run["store"])
    checkpointer = Checkpointer(
        store, LAYOUT, stage="train", attempt=run["attempt"], fence=None, keep=None,
        when_busy=run.get("when_busy", "wait"),
    )  # fmt: skip
    commits = sorted(list_commits(store, LAYOUT, "train"), key=LAYOUT.sort_key, reverse=True)
    if "from_step" in run:
        commits = [ref for ref in commits if ref.position == run["from_step"]]
    run["start"] = commits[0].position if commits else 0
    control = Control(run, rank)
    ctx = TrainContext(
        train=train,
        checkpoints=CheckpointSpec(interval_steps=run.get("interval", 5)),
        rank=rank,
        world_size=world_size,
        rows=prepare_rows(made, tokenizer, {}, train),
        tokenizer_files=files,
        checkpointer=checkpointer,
        candidates=commits,
        control=control,
        ranks_per_node=run.get("ranks_per_node"),
        evaluation=prepare_rows(made[-run["held_out"] :], tokenizer, {}, train) if "held_out" in run else None,
    )
    fsdp.HELD_BYTES_ON_CPU = run.get("held_bytes", 2**30)
    if "layout" in run:
        use_layout(run["layout"])
    dist.barrier()  # nobody lists while another rank's attempt already commits

    try:
        result = run_training(ctx)
    except (CheckpointError, TrainingError) as exc:
        return {"error": type(exc).__name__, "text": str(exc)}
    finally:
        checkpointer.close()
    return {**_describe(result), **_heard(control)}


def trained_model(train: TrainSpec, dataset: Any, folder: Path) -> Any:
    """Train on a dataset, alone, and load what was committed into a model."""
    from alpaca_jobs.training.engines.protocol import kept_tensors
    from alpaca_jobs.training.model import build_model

    losses_of(train, dataset, folder)
    store = Store.open(f"file://{folder}")
    checkpointer = Checkpointer(store, LAYOUT, stage="train", attempt=2, fence=None, keep=None)
    model = build_model(train, load_tokenizer(dataset.tokenizer_files), device=torch.device("cpu"))
    checkpointer.load(list_commits(store, LAYOUT, "train")[0], {"model": kept_tensors(model, adapters_only=False)})
    checkpointer.close()
    return model


def losses_of(train: TrainSpec, dataset: Any, folder: Path) -> list[float]:
    """Train on a dataset, alone; returns the loss of every step."""
    control = Control({}, 0)
    checkpointer = Checkpointer(Store.open(f"file://{folder}"), LAYOUT, stage="train", attempt=1, fence=None, keep=None)
    try:
        run_training(
            TrainContext(
                train=train,
                checkpoints=CheckpointSpec(interval_steps=1000),
                rank=0,
                world_size=1,
                rows=dataset.rows,
                tokenizer_files=dataset.tokenizer_files,
                checkpointer=checkpointer,
                candidates=[],
                control=control,
            )
        )
    finally:
        checkpointer.close()
    return [metrics.loss for metrics in control.metrics]


def _describe(result: TrainResult) -> dict[str, Any]:
    return {
        "final_step": result.final_step,
        "stopped_by": result.stopped_by,
        "saved_step": result.saved_step,
        "losses": [loss.hex() for loss in result.losses],
        "words": result.words,
    }


def _heard(control: Control) -> dict[str, Any]:
    return {
        "was_loaded": control.was_loaded,
        "loaded": None if control.loaded_ref is None else control.loaded_ref.position,
        "fallbacks": control.fallbacks,
        "saved": [result.position for result in control.saves if result.committed],
        "evaluations": [[report.step, report.loss.hex()] for report in control.evaluations],
        "evaluations_begun": control.num_begun,
        "best": [report.step for report in control.evaluations if report.is_best],
        "steps": [metrics.step for metrics in control.metrics],
        "grad_norms": [metrics.grad_norm for metrics in control.metrics],
    }


def main(plan_path: str, rank: int) -> None:
    """Run every planned training and write the answers."""
    plan = json.loads(Path(plan_path).read_text())
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{plan['meeting_point']}", rank=rank, world_size=plan["world_size"]
    )  # fmt: skip
    answers = {}
    for run in plan["runs"]:
        if "damage" in run:
            dist.barrier()
            if rank == 0:
                _damage(Path(run["damage"]))
            dist.barrier()
        answers[run["name"]] = train_once(run, rank=rank, world_size=plan["world_size"])
    Path(f"{plan['answers']}-{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


def _damage(folder: Path) -> None:
    """Flip one bit in the middle of every shard of the last rank below a folder."""
    shards = sorted(folder.rglob("rank-*.bin"))
    last = shards[-1].name.rsplit("-", 1)[0]
    for path in (shard for shard in shards if shard.name.startswith(last)):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
