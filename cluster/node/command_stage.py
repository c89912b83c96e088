"""The training stage where `train.method` is command: the user's own program trains, the run does everything else.

The program finds in its environment what it needs (docs/COMMAND.md): the rows as a file, where the model goes, and how
to save and go on. Its checkpoints are StoreCallback's, or folders that are watched; both are the run's own commits.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from alpaca_jobs.data.rows import Row, render_rows
from alpaca_jobs.errors import CommandError, TrainingError
from alpaca_jobs.spec_io import job_to_dict
from checkpoints.given import GIVEN_VARIABLE, GivenAttempt
from checkpoints.keys import CommitRef
from cluster.events import saving_fields
from cluster.node.attempt_context import AttemptContext
from cluster.node.command_export import export_folder
from cluster.node.command_process import CommandProcess, CommandSetup, command_argv, command_programs
from cluster.node.inputs import frozen_files
from cluster.node.memory_kills import memory_kills
from cluster.node.train_stage import TrainEnd
from cluster.node.watched_folder import WatchedFolder
from cluster.phase import Phase

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.05
_KILL_BEFORE_S: Final = 2.0
"""A command that is still there so long before the machine goes is killed, so that the attempt can record its end."""
_KILLED: Final = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""How a command ends that was killed, by itself or below a shell."""


class CommandStage:
    """One attempt's training by a command; the methods are TrainStage's."""

    def __init__(self, ctx: AttemptContext) -> None:
        self._ctx = ctx
        self._train = ctx.job.train
        self._folder = ctx.scratch / "command"
        self._output = self._folder / "output"
        self._data = self._folder / "data.jsonl"
        self._world_size = 1
        self._num_rows = 0
        self._step = 0
        self._saved: int | None = None
        self._saving: dict[str, Any] = {}
        self._process: CommandProcess | None = None
        self._watched: WatchedFolder | None = None
        if self._train.watch is not None:
            self._watched = WatchedFolder(ctx, self._folder / self._train.watch)

    def start(self, world_size: int) -> None:
        """Nothing has to be imported here; the command does that itself."""
        self._world_size = world_size

    def load(self, rows: Sequence[Row] | str) -> None:
        """Write the rows (or the records of the file at a URI) as JSON lines, and the job's own files beside them."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._output.mkdir(parents=True)
        if isinstance(rows, str):
            from alpaca_jobs.data.streams import local_file, stream_table

            with local_file(rows, self._folder) as path, self._data.open("w", encoding="utf-8") as file:
                for self._num_rows, record in enumerate(stream_table(path, rows), start=1):
                    file.write(json.dumps(dict(record.fields), ensure_ascii=False) + "\n")
        else:
            self._num_rows = len(rows)
            self._data.write_bytes(render_rows(rows))
        (self._folder / "job.json").write_text(json.dumps(job_to_dict(self._ctx.job)), encoding="utf-8")
        for name, key in frozen_files(self._ctx.store).items():
            (self._folder / name).write_bytes(self._ctx.store.get(key))

    def run(self, candidates: Sequence[CommitRef], *, base_is_open: bool) -> TrainEnd:
        """Run the command to its end, or until a notice.

        Args:
            candidates: train commits that count, newest first.
            base_is_open: whether the base record is to be put once the state is loaded.

        Raises:
            CommandError: there is no such program.
            TrainingError: it exited with something else than 0, or began anew although there was a checkpoint.
        """
        kills = memory_kills()
        restored = self._restore(candidates, base_is_open=base_is_open)
        is_each = self._train.command_per == "rank"
        setup = CommandSetup(
            argv=command_argv(self._train.command or ()), folder=self._folder,
            environ=self._environ(candidates, base_is_open=base_is_open, restored=restored),
            ranks=self._world_size if is_each else 1, programs=command_programs(self._train.install),
        )  # fmt: skip
        self._process = CommandProcess(setup)
        self._ctx.marker.enter(Phase.STEP)
        logger.info("the command runs: %s", self._train.command)
        code = self._wait(self._process)
        if self._watched is not None:
            self._watched.finish(was_killed=code in _KILLED)
        self._pass_on(self._process)
        if self._ctx.interruption.notice is not None:
            return TrainEnd("notice", self._step, self._saved, self._left_words(code))
        for_memory = " The system has killed a process here for memory." if memory_kills() > kills else ""
        self._check(self._process, code, base_is_open=base_is_open, for_memory=for_memory)
        return TrainEnd("done", self._step, self._saved, "")

    def export(self) -> str:
        """Commit the folder that the command wrote its model to; returns the weights' digest.

        Raises:
            CommandError: there is no model in it.
        """
        return export_folder(self._ctx, self._output, num_rows=self._num_rows, step=self._step)

    def end(self) -> None:
        """Kill what is left of the command."""
        if self._process is not None:
            self._process.kill()

    def _restore(self, candidates: Sequence[CommitRef], *, base_is_open: bool) -> Path | None:
        if self._watched is None or not candidates:
            return None
        ref, path = self._watched.restore(candidates)
        if base_is_open:
            self._ctx.log.put_base(self._ctx.attempt, ref)
        self._ctx.events.emit("base", stage="train", position=ref.position)
        self._saved = self._step = ref.position
        return path

    def _environ(
        self, candidates: Sequence[CommitRef], *, base_is_open: bool, restored: Path | None
    ) -> dict[str, str]:  # fmt: skip
        ctx, checkpoints = self._ctx, self._ctx.job.checkpoints
        every = checkpoints.interval_steps if isinstance(checkpoints.interval_steps, int) else None
        given = GivenAttempt(
            store_uri=ctx.store_uri, run_id=ctx.run_id, attempt=ctx.attempt, layout=ctx.layout, stage="train",
            candidates=tuple(candidates), base_is_open=base_is_open, every_steps=every, keep=checkpoints.keep,
            keep_every=checkpoints.keep_every, when_busy=checkpoints.when_busy,
        )  # fmt: skip
        return {
            "ALPACA_JOBS_RUN": ctx.run_id,
            "ALPACA_JOBS_ATTEMPT": str(ctx.attempt),
            "ALPACA_JOBS_JOB": str(self._folder / "job.json"),
            "ALPACA_JOBS_DATA": str(self._data),
            "ALPACA_JOBS_OUTPUT": str(self._output),
            "ALPACA_JOBS_MODEL": self._train.model,
            "ALPACA_JOBS_REVISION": self._train.revision or "",
            "ALPACA_JOBS_SEED": str(self._train.seed),
            "ALPACA_JOBS_WORLD_SIZE": str(self._world_size),
            "ALPACA_JOBS_SAVE_EVERY": "" if every is None else str(every),
            "ALPACA_JOBS_RESUME": "" if restored is None else str(restored),
            GIVEN_VARIABLE: given.to_json(),
        }

    def _wait(self, process: CommandProcess) -> int:
        """Until the command has ended; pass a notice on, and kill it where the attempt may go on no longer."""
        told = False
        while (code := process.poll()) is None:
            interruption = self._ctx.interruption
            try:
                interruption.check()
                if self._watched is not None:
                    self._watched.look()
            except Exception:
                process.kill()
                raise
            if interruption.notice is not None:
                if not told:
                    told = True
                    process.terminate()
                elif (interruption.seconds_left or 0.0) <= _KILL_BEFORE_S:
                    process.kill()
            self._pass_on(process)
            time.sleep(_POLL_S)
        process.kill()  # what it left behind in its group
        return code

    def _pass_on(self, process: CommandProcess) -> None:
        """Facts that the command told, and those about watched folders, as events and marks."""
        facts = process.facts()
        if self._watched is not None:
            self._ctx.marker.saving(self._watched.saving)
            while self._watched.saves:
                save = self._watched.saves.pop(0)
                if save["position"] > max([self._step, *(_step_of(fact) for fact in facts)]):
                    facts.append({"kind": "step", "step": save["position"]})  # which the command has not told itself
                facts.append({"kind": "save", **save})
        for fact in facts:
            self._take(fact)

    def _take(self, fact: dict[str, Any]) -> None:
        ctx, kind = self._ctx, fact.pop("kind")
        ctx.told(kind, fact)
        position = fact.get("position")
        if kind == "step" and isinstance(fact.get("step"), int):
            self._step = max(self._step, fact["step"])
            ctx.marker.reached("train", self._step)
            ctx.events.emit("step", **{**fact, "saving": None, **self._saving})  # not the command's own word for it
        elif kind == "loaded":
            self._saved = position
            ctx.events.emit("base", stage="train", position=position or 0)
        elif kind == "saving":
            ctx.marker.saving(position)
            self._saving = saving_fields(position)
            if position is not None:
                ctx.events.emit("saving", position=position)
        elif kind == "save":
            self._saved = position if fact.get("committed") else self._saved
            ctx.events.emit("save", **fact)

    def _left_words(self, code: int) -> str:
        saved = "nothing is saved" if self._saved is None else f"step {self._saved} is saved"
        return f"the command left on notice after step {self._step} ({_exit_words(code)}); {saved}"

    def _check(self, process: CommandProcess, code: int, *, base_is_open: bool, for_memory: str) -> None:
        if (problem := process.why(code)) is not None:
            raise problem
        if code:
            raise TrainingError(
                f"The training command ended with {_exit_words(code)} after step {self._step}: {process.last_words()}."
                f"{for_memory} All it said: alpaca-jobs logs {self._ctx.run_id}"
            )
        record = next(one for one in self._ctx.log.records() if one.number == self._ctx.attempt)
        if base_is_open and not record.has_base:
            raise TrainingError(
                "The training command began anew although the run has a checkpoint to go on from, so what it did "
                "cannot be told from what was done before. Let it resume (StoreCallback.from_env().resume_folder), or "
                "set train.watch to the folder of its checkpoints; see docs/COMMAND.md."
            )
        if not any(self._output.iterdir()):
            raise CommandError(
                "The training command ended well but wrote nothing to $ALPACA_JOBS_OUTPUT, where its model belongs."
            )


def _step_of(fact: dict[str, Any]) -> int:
    step = fact.get("step")
    return step if isinstance(step, int) else 0


def _exit_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
