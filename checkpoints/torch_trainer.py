"""StoreCallback: Hugging Face's Trainer saving to and resuming from a run's store, asynchronously and verified.

    callback = StoreCallback("s3://bucket/my-run", every_steps=100)
    trainer = Trainer(model=model, args=TrainingArguments(..., save_strategy="no"), callbacks=[callback], ...)
    trainer.train(resume_from_checkpoint=callback.resume_folder(trainer))

If training raises, the attempt stays alive until `callback.close()` or the process ends it; in a `with callback:` block
it is closed. In a program that a run started (train.method: command), `StoreCallback.from_env()` makes the callback.

It has the methods that Trainer calls and imports nothing of transformers. Model, optimizer, scheduler, every rank's
random states and the position in the data come back as they were: in one process, under DDP, FSDP2 and DeepSpeed's
ZeRO, each rank storing and reading its own part, with the loss scale of fp16. What was saved under FSDP2 loads on any
number of ranks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints.best import METRICS, Metric
from checkpoints.errors import StateMismatch
from checkpoints.given import GivenAttempt, Progress
from checkpoints.keys import CommitRef
from checkpoints.store import Store
from checkpoints.torch_bridge import Loaded
from checkpoints.torch_given import GivenCheckpointer
from checkpoints.torch_random import random_state, set_random_state
from checkpoints.torch_run import RunCheckpointer
from checkpoints.torch_trainer_parts import (
    SCALER,
    Sharding,
    apply_parts,
    check_unsharded,
    get_parts,
    is_trainer,
    leave_loading_to_callback,
    sharding_of,
    write_weights,
)

logger = logging.getLogger(__name__)

LEFT_ON_NOTICE = 143
"""Exit status of a program that saved its state and left when it was told to: 128 + SIGTERM."""
_RANDOM = "random"
_NOT_RESUMED = "{}: call trainer.train(resume_from_checkpoint=callback.resume_folder(trainer))"


class StoreCallback:
    """A TrainerCallback (by its methods) that saves every `every_steps` steps.

    A save is made when the next step begins, so that what the Trainer logs and evaluates after a step is part of it.

    Args:
        store, options: as for RunCheckpointer; or an attempt that was given (`from_env`). With
            `best_by=Metric("eval_loss")` the best commit by a number that the Trainer logs stays whatever `keep` says;
            a commit has the numbers logged at its very step, so let the Trainer evaluate where this saves.
        every_steps: optimizer steps between saves.
    """

    def __init__(self, store: str | Store | GivenAttempt, *, every_steps: int, **options: Any) -> None:
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}; it counts optimizer steps, from 1")
        self._every_steps = every_steps
        self._store, self._options = store, options
        self._opened: RunCheckpointer | GivenCheckpointer | None = None
        self._trainer: Any = None
        self._sharding: Sharding = "none"
        self._is_leaving = False
        self._is_due = False
        self._metrics: tuple[int, dict[str, float]] = (-1, {})
        self._loaded: Loaded | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._random: dict[str, Any] | None = None

    @classmethod
    def from_env(cls, *, every_steps: int | None = None, best_by: Metric | None = None) -> StoreCallback:
        """The callback for the run that started this program, where and as often as its job says.

        SIGTERM then means that the machine is about to go: the state after the step at hand is saved, and the program
        ends with status 143. Signals are taken over only in the main thread.

        Args:
            every_steps: for a job whose checkpoints.interval_steps is auto.
            best_by: the best commit by this number of the Trainer's stays as well.

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
        callback = cls(given, every_steps=every, best_by=best_by)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: callback.leave())
        return callback

    def leave(self) -> None:
        """Save after the step at hand and end the program; what SIGTERM does."""
        self._is_leaving = True

    @property
    def _run(self) -> RunCheckpointer | GivenCheckpointer:
        """Opened when it is first needed: a callback may be made before the ranks have met, which TrainingArguments do.

        Raises:
            StateMismatch: they have not met by now either.
        """
        if self._opened is None:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not (dist.is_available() and dist.is_initialized()):
                raise StateMismatch(
                    "torch.distributed is not initialized, so each rank would take itself for the only one: make the "
                    "Trainer first, then call callback.resume_folder(trainer)"
                )
            if isinstance(self._store, GivenAttempt):
                self._opened = GivenCheckpointer(self._store, progress=Progress(), **self._options)
            else:
                self._opened = RunCheckpointer(self._store, **self._options)
        return self._opened

    @property
    def _given(self) -> GivenCheckpointer | None:
        return self._run if isinstance(self._run, GivenCheckpointer) else None

    def resume_folder(self, trainer: Any) -> str | None:
        """Find the newest commit that is whole, by reading all of it; returns what `resume_from_checkpoint` wants.

        None when the run has no commit yet. The folder is local and goes away when training ends. It holds the
        Trainer's counters and, where the model is not sharded, its weights; all the rest is loaded from the store when
        training begins.

        Args:
            trainer: the Trainer; its model will do where that is not sharded.

        Raises:
            NoGoodCommit: there are commits, all damaged.
            StateMismatch: the model is sharded in a way that cannot be saved here.
        """
        model = trainer
        if is_trainer(trainer):
            self._trainer, self._sharding, model = trainer, sharding_of(trainer), trainer.model
        if self._sharding == "none":
            self._loaded = self._run.resume({"model": model.state_dict()}, whole=True, partial=True)
        else:  # not sharded yet, perhaps on no device: what it will be is loaded into when training begins
            self._loaded = self._run.resume({}, whole=True, partial=True)
        if self._loaded is None:
            return None
        self._folder = tempfile.TemporaryDirectory(prefix="resume-")
        if self._sharding == "none":
            write_weights(model, Path(self._folder.name))
        else:
            leave_loading_to_callback(trainer)
        counters = self._loaded.manifest.meta["trainer_state"]
        Path(self._folder.name, "trainer_state.json").write_text(json.dumps(counters), encoding="utf-8")
        return self._folder.name

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Load everything, if `resume_folder` found a commit."""
        if self._trainer is None:
            check_unsharded(args, parts)
        if not self._run.started and self._run.resume({}, partial=True) is not None:
            raise StateMismatch(
                _NOT_RESUMED.format("there are commits to go on from, and resume_folder was not called")
            )
        if self._loaded is None:
            return
        step = int(self._loaded.manifest.meta["trainer_state"]["global_step"])
        if state.global_step != step:
            raise StateMismatch(
                _NOT_RESUMED.format(f"the Trainer is at step {state.global_step}, the commit at {step}")
            )
        saved_ranks = self._loaded.manifest.world_size
        everything = self._state(parts, random_of=_rank() % saved_ranks)
        self._load(self._loaded.ref, everything)
        apply_parts(self._sharding, self._trainer, parts, everything)
        (self._random,) = everything[_RANDOM].values()
        logger.info("resumed at step %d", step)

    def _load(self, ref: CommitRef, everything: dict[str, Any]) -> None:
        """Load a commit; one of a version that kept no loss scale of fp16 without it."""
        try:
            # Of the random states each rank asks for its own, and on fewer ranks nobody asks for the others'.
            self._run.load(ref, everything, partial=(_RANDOM,))
        except StateMismatch as first:
            if everything.pop(SCALER, None) is None:
                raise
            try:
                self._run.load(ref, everything, partial=(_RANDOM,))
            except StateMismatch:
                raise first from None
            logger.warning(
                "%s holds no loss scale of fp16: it was saved by a version of alpaca-jobs that did not keep it. The "
                "scale begins anew, so the first steps may be skipped until it has come down again; losses can differ "
                "from an undisturbed run's by that.", ref,
            )  # fmt: skip

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """A state saved when training ended with an epoch goes on before the next epoch's data is begun."""
        if self._loaded is not None and not self._loaded.manifest.meta["fetched"] and float(state.epoch).is_integer():
            self._go_on_at_random()

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Save, if the step before was one to save after; by now its logs are written and its data is fetched.

        At the first step after a resume the Trainer has skipped the data it had seen: here the random numbers go on.
        """
        if self._is_due:
            self._save(state, parts, fetched=True)
        self._go_on_at_random()

    def _go_on_at_random(self) -> None:
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._run.poll()
        self._is_leaving = self._run.any_rank(self._is_leaving)
        if (given := self._given) is not None and state.is_world_process_zero:
            given.progress.tell("step", step=state.global_step, total_steps=state.max_steps)
        self._is_due = self._is_leaving or state.global_step % self._every_steps == 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **parts: Any) -> None:
        """Pass the loss on to the run; keep the numbers for the commit of this step."""
        given = self._given
        if given is not None and state.is_world_process_zero and "loss" in (logs or {}):
            given.progress.tell("step", step=state.global_step, total_steps=state.max_steps, loss=logs["loss"])
        step, numbers = self._metrics
        known = numbers if step == state.global_step else {}
        self._metrics = (state.global_step, {**known, **_numbers(logs or {})})
        if self._is_due and "train_runtime" in (logs or {}):  # the last words; a Trainer may load its best model next
            self._save(state, parts, must=True)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """An evaluation has begun, and whoever was told to leave has no time for one."""
        if self._is_due and self._is_leaving:
            self._save(state, parts)

    def _save(self, state: Any, parts: Mapping[str, Any], *, fetched: bool = False, must: bool = False) -> None:
        """`fetched`: the data of the next step was fetched, which draws random numbers when an epoch begins. `must`:
        nothing comes after it, so it is not passed over because a save is under way (when_busy="skip").
        """
        self._is_due = False
        if must or self._is_leaving:
            self._run.wait()
        meta: dict[str, Any] = {"trainer_state": dataclasses.asdict(state), "fetched": fetched}
        step, numbers = self._metrics
        if step == state.global_step and numbers:
            meta[METRICS] = numbers
        # Where nothing trains on, nothing is gained by copying later, and the Trainer may load other weights next.
        beside = () if must or self._is_leaving or self._sharding == "zero" else (parts["optimizer"],)
        self._run.save(state.global_step, self._state(parts, random_of=_rank()), meta=meta, optimizers=beside)
        if self._is_leaving:
            self._run.wait()
            self.close("preempted")
            logger.warning("left on notice after step %d, which is saved", state.global_step)
            raise SystemExit(LEFT_ON_NOTICE)

    def _state(self, parts: Mapping[str, Any], *, random_of: int) -> dict[str, Any]:
        """All that is saved or loaded; of the random states, those of one rank: every rank brings its own."""
        random = {f"rank-{random_of:05d}": random_state()}
        return {**get_parts(self._sharding, self._trainer, parts), _RANDOM: random}

    def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Wait for the last save and end the attempt."""
        if self._is_due:
            self._save(state, parts, must=True)
        self._run.wait()
        self.close()

    def close(self, stop_reason: str | None = None) -> None:
        """End the attempt; for when training stopped by an exception. See RunCheckpointer.close."""
        try:
            if self._opened is not None:
                self._opened.close(stop_reason)
        finally:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def __enter__(self) -> StoreCallback:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(None if kind is None else "crashed")

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Every other event of the Trainer, also those to come, is none of our business."""
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


def _nothing(*args: Any, **parts: Any) -> None:
    return None


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """What can be compared of a log entry; NaN and infinities are no JSON."""
    return {
        name: float(value)
        for name, value in logs.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
