"""StoreCallback: Hugging Face's Trainer saving to and resuming from a run's store, asynchronously and verified.

    callback = StoreCallback("s3://bucket/my-run", every_steps=100)
    trainer = Trainer(model=model, args=TrainingArguments(..., save_strategy="no"), callbacks=[callback], ...)
    trainer.train(resume_from_checkpoint=callback.resume_folder(model))

In a program that a run started (train.method: command), `StoreCallback.from_env()` stands for the first line.

It has the methods that Trainer calls and imports nothing of transformers. Model, optimizer, scheduler, random states
and the position in the data come back as they were. For one process or DDP; under FSDP or DeepSpeed the Trainer
insists on loading its own files, so this refuses there.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from checkpoints.errors import StateMismatch
from checkpoints.given import GivenAttempt, Progress
from checkpoints.store import Store
from checkpoints.torch_bridge import Loaded
from checkpoints.torch_given import GivenCheckpointer
from checkpoints.torch_run import RunCheckpointer

logger = logging.getLogger(__name__)

LEFT_ON_NOTICE = 143
"""Exit status of a program that saved its state and left when it was told to: 128 + SIGTERM."""


class StoreCallback:
    """A TrainerCallback (by its methods) that saves every `every_steps` steps.

    Args:
        store, options: as for RunCheckpointer; or the checkpointer of an attempt that was given (`from_env`).
        every_steps: optimizer steps between saves.
    """

    def __init__(self, store: str | Store | GivenCheckpointer, *, every_steps: int, **options: Any) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; it counts optimizer steps, from 1")
        self._every_steps = every_steps
        self._given = store if isinstance(store, GivenCheckpointer) else None
        self._run = store if isinstance(store, GivenCheckpointer) else RunCheckpointer(store, **options)
        self._is_leaving = False
        self._waits_for_log = False
        self._loaded: Loaded | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._random: dict[str, Any] | None = None

    @classmethod
    def from_env(cls, *, every_steps: int | None = None) -> StoreCallback:
        """The callback for the run that started this program, where and as often as its job says.

        SIGTERM then means that the machine is about to go: the state after the step at hand is saved, and the program
        ends with status 143. Signals are taken over only in the main thread.

        Args:
            every_steps: for a job whose checkpoints.interval_steps is auto.

        Raises:
            NotGiven: no run started this program.
            ValueError: neither the job nor the caller says how often to save.
        """
        given = GivenAttempt.from_env()
        every = given.every_steps or every_steps
        if every is None:
            raise ValueError(
                "the job's checkpoints.interval_steps is auto, which only our own training can measure. Set a number "
                "there, or call from_env(every_steps=100)"
            )
        callback = cls(GivenCheckpointer(given, progress=Progress()), every_steps=every)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: callback.leave())
        return callback

    def leave(self) -> None:
        """Save after the step at hand and end the program; what SIGTERM does."""
        self._is_leaving = True

    def resume_folder(self, model: Any) -> str | None:
        """Load the newest good commit's weights into `model`; returns what `resume_from_checkpoint` wants.

        None when the run has no commit yet. The folder holds the weights and the Trainer's counters, is local, and goes
        away when training ends; the optimizer and the rest are loaded from the store when training begins.

        Raises:
            NoGoodCommit: there are commits, all damaged.
        """
        self._loaded = self._run.resume({"model": model.state_dict()})
        if self._loaded is None:
            return None
        self._folder = tempfile.TemporaryDirectory(prefix="resume-")
        model.save_pretrained(self._folder.name)
        counters = self._loaded.manifest.meta["trainer_state"]
        Path(self._folder.name, "trainer_state.json").write_text(json.dumps(counters), encoding="utf-8")
        return self._folder.name

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Load optimizer, scheduler and random states, if `resume_folder` found a commit."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise StateMismatch(
                "StoreCallback works in one process and under DDP; with FSDP or DeepSpeed the Trainer loads its own "
                "files. Use Checkpointer in a loop of your own there."
            )
        if self._loaded is None:
            if state.global_step == 0 and not self._run.started:
                self._run.resume({})
            return
        step = int(self._loaded.manifest.meta["trainer_state"]["global_step"])
        if state.global_step != step:
            raise StateMismatch(
                f"the Trainer is at step {state.global_step}, the commit at {step}: call "
                "trainer.train(resume_from_checkpoint=callback.resume_folder(model))"
            )
        everything = _state(parts)
        self._run.load(self._loaded.ref, everything)
        set_state_dict(
            parts["model"],
            parts["optimizer"],
            model_state_dict=everything["model"],
            optim_state_dict=everything["optim"],
        )
        scheduler = parts["lr_scheduler"]
        scheduler.load_state_dict({**scheduler.state_dict(), **everything["scheduler"]})
        self._random = everything["random"]
        logger.info("resumed at step %d", step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """By now the Trainer has skipped the data it had seen: here the random numbers go on from the save."""
        if self._waits_for_log:
            self._save(state, parts)
        if self._random is not None:
            _set_random(self._random)
            self._random = None

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._run.poll()
        if self._given is not None:
            self._is_leaving = self._given.any_rank(self._is_leaving)
            if state.is_world_process_zero:
                self._given.progress.tell("step", step=state.global_step, total_steps=state.max_steps)
        if not self._is_leaving and state.global_step % self._every_steps:
            return
        if control.should_log:  # the Trainer logs next, and what it logs about this step belongs to its state
            self._waits_for_log = True
        else:
            self._save(state, parts)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **parts: Any) -> None:
        """Pass the loss on to the run; make the save that waited for it."""
        if self._given is not None and state.is_world_process_zero and "loss" in (logs or {}):
            self._given.progress.tell("step", step=state.global_step, total_steps=state.max_steps, loss=logs["loss"])
        if self._waits_for_log:
            self._save(state, parts)

    def _save(self, state: Any, parts: Mapping[str, Any]) -> None:
        self._waits_for_log = False
        self._run.save(state.global_step, _state(parts), meta={"trainer_state": dataclasses.asdict(state)})
        if self._is_leaving:
            self._run.wait()
            self.close("preempted")
            logger.warning("left on notice after step %d, which is saved", state.global_step)
            raise SystemExit(LEFT_ON_NOTICE)

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Wait for the last save and end the attempt."""
        if self._waits_for_log:
            self._save(state, parts)
        self._run.wait()
        self.close()

    def close(self, stop_reason: str = "done") -> None:
        """End the attempt; for when training stopped by an exception."""
        self._run.close(stop_reason)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Every other event of the Trainer, also those to come, is none of our business."""
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _nothing(*args: Any, **parts: Any) -> None:
    return None


def _state(parts: Mapping[str, Any]) -> dict[str, Any]:
    weights, moments = get_state_dict(parts["model"], parts["optimizer"])
    scheduler = parts["lr_scheduler"].state_dict()
    plain = {name: value for name, value in scheduler.items() if _is_plain(value)}
    return {"model": weights, "optim": moments, "scheduler": plain, "random": _random()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


def _random() -> dict[str, Any]:
    """The generators that a Trainer uses: Python's, NumPy's, torch's on the CPU and on this rank's GPU."""
    import random

    import numpy as np

    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    kind, keys, position, has_gauss, cached = legacy
    state: dict[str, Any] = {
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(keys.astype("int64")),
            "rest": [int(position), int(has_gauss), float(cached)],
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random(state: Mapping[str, Any]) -> None:
    import random

    import numpy as np

    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))
    position, has_gauss, cached = numpy["rest"]
    keys = numpy["keys"].numpy().astype("uint32")
    np.random.set_state((numpy["kind"], keys, int(position), int(has_gauss), float(cached)))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
