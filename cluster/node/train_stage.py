"""The training stage on a node: workers placed together and watched; what they tell is passed on as events."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from alpaca_jobs.data.rows import Row
from alpaca_jobs.spec_io import job_to_dict
from checkpoints.keys import CommitRef
from cluster.errors import RayFailure
from cluster.hazard import losses_per_hour
from cluster.node.attempt_context import AttemptContext
from cluster.node.cost_so_far import cost_words
from cluster.node.failures import is_cause, most_telling
from cluster.node.inputs import with_frozen_inputs
from cluster.node.ray_runtime import RayRuntime
from cluster.node.trackers import start_tracking
from cluster.node.tracking import Tracking
from cluster.node.train_worker import ExportOrder, TrainWorker, WorkerAssignment
from cluster.node.worker_log import log_told

if TYPE_CHECKING:
    from alpaca_jobs.training.control import TrainResult

_POLL_S = 0.2
_OTHERS_WITHIN_S = 2.0


@dataclass(frozen=True)
class TrainEnd:
    """How the stage ended: `stopped_by` is done or notice; `step` the last one made, `saved` the last one committed.

    `words`: what was saved and what was not, or why it ended before the last step, for the end record; empty if there
    is nothing to say.
    """

    stopped_by: str
    step: int
    saved: int | None
    words: str


class TrainStage:
    """One attempt's training. `start` before the rows are at hand, so that the imports overlap with reading them."""

    def __init__(self, ctx: AttemptContext, runtime: RayRuntime) -> None:
        self._ctx = ctx
        self._runtime = runtime
        self._workers: list[Any] = []
        self._prepared: list[Any] = []
        self._dataset: Any = None
        self._tracking: Tracking | None = None

    def start(self, world_size: int) -> None:
        """Place the workers and let them import what they need; returns at once."""
        self._workers = self._runtime.worker_group(
            TrainWorker, world_size, gpus_each=1 if self._ctx.gpus_per_node else 0
        )  # fmt: skip
        job = job_to_dict(self._ctx.job)
        self._prepared = [worker.prepare.remote(job) for worker in self._workers]

    def load(self, rows: Sequence[Row] | str) -> None:
        """Turn rows (or the file of rows at a URI) into what the workers train on; once, before anything else.

        Rows of a file are in no process's memory: their tokens lie on the disk of each machine.
        """
        took_s = self._runtime.results(self._prepared)
        self._ctx.events.emit("ready", seconds=round(max(took_s), 3))
        job = job_to_dict(with_frozen_inputs(self._ctx.job, self._ctx.store))
        folder = str(self._ctx.scratch / "tokens")
        self._dataset = self._workers[0].tokenize.remote(job, self._runtime.share(rows), folder)
        self._until_done([self._dataset])
        if isinstance(rows, str):
            others = self._workers[1:]
            self._until_done([one.tokenize_again.remote(job, rows, folder, self._dataset) for one in others])

    def run(self, candidates: Sequence[CommitRef], *, base_is_open: bool) -> TrainEnd:
        """Train to the end, or until a notice.

        Args:
            candidates: train commits that count, newest first; empty to begin at step 0.
            base_is_open: whether the base record is to be put once the state is loaded.

        Raises:
            RayFailure: a worker died. Whatever a worker raised itself is raised as it is.
        """
        ctx = self._ctx
        assignment = WorkerAssignment(
            job=job_to_dict(ctx.job), store_uri=ctx.store_uri, run_id=ctx.run_id, attempt=ctx.attempt,
            world_size=len(self._workers), rendezvous=self._rendezvous(), on_gpu=bool(ctx.gpus_per_node),
            candidates=tuple(candidates), base_is_open=base_is_open, scratch=str(ctx.scratch),
            losses_per_hour=losses_per_hour(ctx.log.records(), ctx.attempt), paid_s_per_byte=ctx.paid_s_per_byte,
        )  # fmt: skip
        self._tracking = start_tracking(ctx)
        try:
            calls = [worker.run.remote(assignment, self._dataset) for worker in self._workers]
            result: TrainResult = self._until_done(calls)[0]
        finally:
            if self._tracking is not None:
                self._tracking.close()
                self._tracking = None
        words = result.words if result.stopped_by != "done" or result.stopped_early else ""
        return TrainEnd(result.stopped_by, step=result.final_step, saved=result.saved_step, words=words)

    def _rendezvous(self) -> str:
        """Where the workers meet: a file on the one machine there is, else a port of the first worker's machine."""
        if self._ctx.group.size == 1:
            return f"file://{self._ctx.scratch}/rendezvous"
        found: str = self._runtime.result(self._workers[0].open_rendezvous.remote(self._ctx.group.address))
        return found

    def export(self, ref: CommitRef) -> str:
        """Let the first worker write the model of a train commit to the store; returns the weights' digest."""
        ctx = self._ctx
        order = ExportOrder(
            job=job_to_dict(ctx.job), store_uri=ctx.store_uri, run_id=ctx.run_id, attempt=ctx.attempt, ref=ref,
            scratch=str(ctx.scratch), cost=cost_words(ctx),
        )  # fmt: skip
        digest: str = self._until_done([self._workers[0].export.remote(order, self._dataset)])[0]
        return digest

    def end(self) -> None:
        """End the workers' processes."""
        self._runtime.end_actors(self._workers)
        self._workers = []

    def _until_done(self, calls: list[Any]) -> list[Any]:
        """Wait for all calls; pass facts on and a notice in meanwhile. The first failure ends the wait."""
        pending, told = list(calls), False
        while pending:
            self._ctx.interruption.check()
            if self._ctx.interruption.notice is not None and not told:
                told = True
                left = self._ctx.interruption.seconds_left or 0.0
                self._runtime.results([worker.notice.remote(left) for worker in self._workers])
            done, pending = self._runtime.wait(pending, timeout_s=_POLL_S)
            if failures := self._failures(done):
                self._fail(failures, pending)
            self._pass_on_facts()
        return [self._runtime.result(call) for call in calls]

    def _failures(self, calls: Sequence[Any]) -> list[Exception]:
        failures: list[Exception] = []
        for call in calls:
            try:
                self._runtime.result(call)
            except Exception as exc:  # noqa: BLE001 - whatever it is, another rank may say more: _fail raises one
                failures.append(exc)
        return failures

    def _fail(self, failures: list[Exception], pending: list[Any]) -> NoReturn:
        """Raise what says most; other ranks fail a moment later, and theirs may be the cause of the first."""
        give_up_at = time.monotonic() + _OTHERS_WITHIN_S
        while pending and not any(is_cause(error) for error in failures) and time.monotonic() < give_up_at:
            done, pending = self._runtime.wait(pending, timeout_s=_POLL_S)
            failures += self._failures(done)
        with suppress(RayFailure, MemoryError):
            self._pass_on_facts(give_up_at=time.monotonic() + _OTHERS_WITHIN_S)  # the last steps before it
        raise most_telling(failures)

    def _pass_on_facts(self, *, give_up_at: float = math.inf) -> None:
        call = self._workers[0].drain.remote()
        while not self._runtime.wait([call], timeout_s=_POLL_S)[0]:
            self._ctx.interruption.check()  # a worker that hangs answers never
            if time.monotonic() > give_up_at:
                return
        for fact in self._runtime.result(call):
            kind = fact.pop("kind")
            if kind == "log":
                log_told(fact)
            elif kind == "loaded":
                self._ctx.told(kind, {})
                ref: CommitRef | None = fact["ref"]
                self._ctx.events.emit("base", stage="train", position=0 if ref is None else ref.position)
                if self._tracking is not None:
                    self._tracking.begin(ref)
            elif kind == "evaluating":
                self._ctx.told(kind, fact)  # no news to anybody but who watches over hanging machines
            else:
                self._ctx.events.emit(kind, **fact)
                self._ctx.told(kind, fact)
                if self._tracking is not None:
                    self._tracking.told(kind, fact)
