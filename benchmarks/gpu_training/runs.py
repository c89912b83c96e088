"""What training_gpu.py measures: our updates, the padded recipe, saves beside them, a run to be killed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_training.children import Work
from gpu_training.models import Shape, write_shape
from padded_recipe import train_padded
from training_data import Control, alpaca_rows, one_rank

from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.batching import global_batch
from alpaca_jobs.training.control import TrainContext
from alpaca_jobs.training.engines.protocol import Engine
from alpaca_jobs.training.exact import exact_mode
from alpaca_jobs.training.loop import run_training
from alpaca_jobs.training.metrics import StepMetrics
from alpaca_jobs.training.saves import Saves
from alpaca_jobs.training.saving import SaveReport, SaveSchedule
from alpaca_jobs.training.state import TrainState, build_state
from alpaca_jobs.training.updates import Updates

SEED = 42
Told = tuple[str, int, str]
"""How far a training is: ("step", number, its loss in hex) or ("saved", number, "")."""
NEVER = CheckpointSpec(interval_steps=10**6)


@dataclass(frozen=True)
class Measured:
    """What one training came to, group by group.

    Attributes:
        rates: real tokens per second.
        mfus: fractions; empty where the peak of the device is not known.
        peak_gib: most GPU memory that tensors had; None on a CPU.
        layout: how rows lay in a tensor; "padded" for the published recipe.
    """

    rates: tuple[float, ...]
    mfus: tuple[float, ...]
    peak_gib: float | None
    layout: str

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def mfu(self) -> float | None:
        return statistics.median(self.mfus) if self.mfus else None


@dataclass(frozen=True)
class SavesCost:
    """What saves in the background cost.

    Attributes:
        step_s: a step while nothing is saved.
        lost_s: for each save, the time of the steps from its beginning to its end, less as many steps without one;
            at least what training stood still.
        saves: what each of them says of itself.
        interval_steps, interval_by: what `interval_steps: auto` comes to by these, for a machine lost every hour.
    """

    step_s: float
    lost_s: tuple[float, ...]
    saves: tuple[SaveReport, ...]
    interval_steps: int
    interval_by: str

    @property
    def share(self) -> float:
        """Of all time, at that interval."""
        return statistics.median(self.lost_s) / (self.interval_steps * self.step_s)


@contextmanager
def context(
    work: Work, shape: Shape, keys: dict[str, Any], control: Control, *, run: Path | None = None
) -> Iterator[TrainContext]:  # fmt: skip
    """A training of a model that is made from its shape, and everything around it; nothing has run yet."""
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        write_shape(shape, Path(folder))
        train = train_spec(work, folder, keys)
        data = alpaca_rows(train.global_batch_size * work.all_steps, vocab_size=shape.vocab)
        with one_rank(
            train, NEVER, data, Path(folder), threads=work.threads, control=control, device=work.device, run=run
        ) as ctx:
            yield ctx


def train_spec(work: Work, folder: str, keys: dict[str, Any]) -> TrainSpec:
    """The recipe, with these keys; steps without end, for the caller counts."""
    given = {"model": folder, "global_batch_size": work.rows, "epochs": 10_000, "seed": SEED}
    return TrainSpec(**given, **{"dtype": work.dtype, **keys})


@torch.no_grad()
def make_weights(engine: Engine) -> None:
    """Random weights, the same in every training of a shape; norms are 1. In place, as a checkpoint is loaded."""
    torch.manual_seed(0)
    state = engine.state()
    for tensor in (*engine.model.parameters(), *state["model"].values()):
        if tensor.ndim > 1:
            tensor.normal_(0.0, 0.02)
        else:
            tensor.fill_(1.0)
    engine.after_load(state)


@contextmanager
def updates_of(ctx: TrainContext) -> Iterator[tuple[TrainState, Saves, Updates]]:
    """A training's model and what makes its updates; nothing has run yet."""
    with exact_mode(bits=ctx.train.exactness == "bits", threads=ctx.threads):
        state = build_state(ctx, with_weights=False)
        make_weights(state.engine)  # on the device: no 27 GB in a file
        saves = Saves(ctx, state)
        updates = Updates(ctx, state, saves)
        try:
            yield state, saves, updates
        finally:
            updates.close()
            state.engine.close()


def measure_ours(work: Work, shape: Shape, keys: dict[str, Any]) -> Measured:
    """Our loop's updates, as run_training makes them."""
    control = Control()
    with context(work, shape, keys, control) as ctx, updates_of(ctx) as (state, _, updates):
        for _ in range(work.all_steps):
            updates.one_step()
        return Measured(*_groups(work, control), _peak_gib(work), str(state.layout))


def _groups(work: Work, control: Control) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rates and MFUs by the time between the ends of steps: the optimizer's kernels of a step run into the next one, so
    that a step's own seconds are not all of it, but what lies between two ends is one step.
    """
    rates, mfus = [], []
    for begin in range(work.warm_up, work.all_steps, work.steps):
        metrics = control.metrics[begin : begin + work.steps]
        seconds = control.ends[begin + work.steps - 1] - control.ends[begin - 1]
        rates.append(sum(one.tokens for one in metrics) / seconds)
        at_peak = [one.mfu * one.seconds for one in metrics if one.mfu is not None]  # seconds at the device's peak
        if at_peak:
            mfus.append(sum(at_peak) / seconds)
    return tuple(rates), tuple(mfus)


def _peak_gib(work: Work) -> float | None:
    return None if work.device == "cpu" else torch.cuda.max_memory_allocated() / 2**30


def has_accelerate() -> bool:
    """Whether Hugging Face's Trainer can run."""
    return importlib.util.find_spec("accelerate") is not None


def measure_padded(work: Work, shape: Shape, size: int) -> Measured:
    """The published recipe: Hugging Face's Trainer in bfloat16 by autocast, on the same rows in the same order."""
    if not has_accelerate():  # the Trainer would say so by an ImportError of its own
        raise ModuleNotFoundError("accelerate is not installed", name="accelerate")
    from transformers import AutoConfig, AutoModelForCausalLM

    on_gpu = work.device != "cpu"
    steps = 2 + work.groups
    data = alpaca_rows(work.rows * steps, vocab_size=shape.vocab)
    order = [
        list(global_batch(step, seed=SEED, num_rows=len(data), global_batch_size=work.rows)[1])
        for step in range(1, steps + 1)
    ]
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        write_shape(shape, Path(folder))
        torch.manual_seed(SEED)
        with torch.device(work.device):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        seconds = train_padded(
            model, data, order, size, folder, wait=torch.cuda.synchronize if on_gpu else None, bf16=True,
            **({"tf32": True} if on_gpu else {"use_cpu": True, "dataloader_pin_memory": False}),
        )  # fmt: skip
    tokens = [int(data.lengths[batch].sum()) for batch in order]
    rates = tuple(count / spent for count, spent in zip(tokens, seconds, strict=True))[2:]
    return Measured(rates, (), _peak_gib(work), "padded")


def measure_saves(work: Work, shape: Shape, keys: dict[str, Any]) -> SavesCost:
    """Steps without a save; then a save, and steps until it is committed and an older one deleted, `groups` times."""
    control = Control()
    with context(work, shape, keys, control) as ctx, updates_of(ctx) as (_, saves, updates):
        for _ in range(work.all_steps):
            updates.one_step()
        step_s = (control.ends[-1] - control.ends[work.warm_up - 1]) / (work.groups * work.steps)
        lost, schedule = [], SaveSchedule("auto", max_overhead=ctx.checkpoints.max_overhead, losses_per_hour=1.0)
        for _ in range(1 + work.groups):  # the first one also makes the page-locked memory that the others use
            begin, before = control.ends[-1], len(control.ends)
            saves.save()
            updates.one_step()
            while ctx.checkpointer.in_flight is not None:
                updates.one_step()
            saves.poll()
            lost.append(control.ends[-1] - begin - (len(control.ends) - before) * step_s)
        done = control.saves[1:]
    schedule.observe_step(step_s)
    for save in done:
        schedule.observe_save(stall_s=save.stall_s, seconds=save.seconds)
    lost_s = tuple(max(seconds, save.stall_s) for seconds, save in zip(lost[1:], done, strict=True))
    return SavesCost(step_s, lost_s, tuple(done), schedule.interval, schedule.interval_by)


def write_weights(work: Work, shape: Shape, folder: str) -> None:
    """A model with weights, for the part that is killed: there the job's own loop reads them."""
    write_shape(shape, Path(folder), with_weights=True)


def train_to_the_end(
    work: Work,
    folder: str,
    run: str,
    keys: dict[str, Any],
    every: int,
    *,
    tell: Callable[[Told], None] = lambda told: None,
) -> tuple[int, tuple[str, ...]]:
    """`run_training` from the newest state in `run`.

    Args:
        folder: the model's, with weights.
        every: steps between saves.

    Returns:
        The step it began after, and the loss of each step that it made, in hex: every bit.
    """

    class Telling(Control):
        def stepped(self, metrics: StepMetrics) -> None:
            super().stepped(metrics)
            tell(("step", metrics.step, metrics.loss.hex()))

        def saved(self, result: SaveReport) -> None:
            super().saved(result)
            tell(("saved", result.position, ""))

    train = train_spec(work, folder, keys)
    config = json.loads((Path(folder) / "config.json").read_text())
    data = alpaca_rows(train.global_batch_size * (train.max_steps or 1), vocab_size=config["vocab_size"])
    with one_rank(
        train, CheckpointSpec(interval_steps=every), data, Path(folder), threads=work.threads, control=Telling(),
        device=work.device, run=Path(run),
    ) as ctx:  # fmt: skip
        start = ctx.candidates[0].position if ctx.candidates else 0
        result = run_training(ctx)
    return start, tuple(loss.hex() for loss in result.losses)


def free_bytes(folder: str) -> int:
    """Room on the disk where states are saved."""
    return shutil.disk_usage(folder).free


def device_facts(work: Work) -> tuple[str, int]:
    """The GPU's name as torch has it, and its memory in bytes."""
    facts = torch.cuda.get_device_properties(work.device)
    return str(facts.name), int(facts.total_memory)
