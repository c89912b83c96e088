"""What runs in one training worker: join the others, train, tell the driver how it goes, export at the end.

A worker is one process with one rank. `run` takes the process's time from the first step to the last; the driver's
questions (`drain`, `notice`) are answered from other threads meanwhile.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpaca_jobs.data.rows import Row
from alpaca_jobs.run_layout import EVAL_LOSS, LAYOUT
from alpaca_jobs.spec import JobSpec, TeacherSpec
from alpaca_jobs.spec_io import job_from_dict
from checkpoints.attempts import AttemptLog
from checkpoints.fence import Fence
from checkpoints.keys import CommitRef
from checkpoints.mapped import map_file
from checkpoints.store import Store
from checkpoints.writer import CommitWriter
from cluster.events import saving_fields
from cluster.node.review import CARD, run_lineage
from cluster.node.worker_log import tell_warnings
from cluster.phase import Phase, PhaseMarker

if TYPE_CHECKING:
    from alpaca_jobs.training.control import TrainResult
    from alpaca_jobs.training.dataset import Dataset
    from alpaca_jobs.training.evaluation import EvaluationReport
    from alpaca_jobs.training.metrics import StepMetrics
    from alpaca_jobs.training.model_card import CardFacts
    from checkpoints.torch_bridge import SaveResult


@dataclass(frozen=True)
class WorkerAssignment:
    """What all workers of an attempt are told alike.

    Attributes:
        job: the job as plain JSON values.
        rendezvous: URL of the workers' meeting point: file://PATH, or tcp://HOST:PORT where rank 0 listens already.
        candidates: train commits that count, newest first.
        base_is_open: whether the attempt's base record is still to be put, by rank 0, once its state is loaded.
        scratch: the head's scratch folder, for rank 0's phase markers.
        on_gpu: whether each worker has a GPU of its own.
        losses_per_hour: of this attempt's machines, expected.
        paid_s_per_byte: what storing a byte is billed, as seconds of the machines at their price.
    """

    job: dict[str, Any]
    store_uri: str
    run_id: str
    attempt: int
    world_size: int
    rendezvous: str
    candidates: tuple[CommitRef, ...]
    base_is_open: bool
    scratch: str
    on_gpu: bool = False
    losses_per_hour: float = 0.0
    paid_s_per_byte: float = 0.0


@dataclass(frozen=True)
class ExportOrder:
    """What to export: the model of train commit `ref`; `cost` is what the run has cost so far, in words."""

    job: dict[str, Any]
    store_uri: str
    run_id: str
    attempt: int
    ref: CommitRef
    scratch: str
    cost: str = ""


class WorkerControl:
    """The worker's side of the talk with the driver: a queue of facts out, a notice in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._facts: list[dict[str, Any]] = []
        self._until: float | None = None
        self._log: AttemptLog | None = None
        self._assignment: WorkerAssignment | None = None
        self._marker: PhaseMarker | None = None
        self._total_steps = 0
        self._saving: dict[str, Any] = {}

    def begin(
        self, assignment: WorkerAssignment, log: AttemptLog, marker: PhaseMarker | None, *, total_steps: int
    ) -> None:
        """Take what the loop's calls need; the marker is rank 0's alone."""
        self._assignment, self._log, self._marker, self._total_steps = assignment, log, marker, total_steps

    def loaded(self, ref: CommitRef | None, fallbacks: Sequence[str]) -> None:
        """Rank 0: the state is loaded and verified, so this attempt's base is known from now on."""
        assert self._assignment is not None
        assert self._log is not None
        if self._assignment.base_is_open:
            self._log.put_base(self._assignment.attempt, ref)
        self.tell({"kind": "loaded", "ref": ref})  # the checkpointer has warned of the fallbacks, and the log has it
        if self._marker is not None:
            self._marker.enter(Phase.STEP)

    def stepped(self, metrics: StepMetrics) -> None:
        """Rank 0: one optimizer update was made."""
        if self._marker is not None:
            self._marker.reached("train", metrics.step)
        self.tell({"kind": "step", "total_steps": self._total_steps, **asdict(metrics), **self._saving})

    def evaluating(self) -> None:
        """Rank 0: the held-out rows are measured from now on."""
        self.tell({"kind": "evaluating"})

    def evaluated(self, report: EvaluationReport) -> None:
        """Rank 0: the loss of the held-out rows was measured."""
        self.tell({"kind": "eval", **asdict(report)})

    def saved(self, result: SaveResult) -> None:
        """Rank 0: a checkpoint was committed, or given up."""
        self.tell({"kind": "save", **asdict(result)})

    def saving(self, position: int | None) -> None:
        """Rank 0: the save of a position began, or with None the last one ended."""
        # Steps carry it too, so that the newest few events say it however long the save takes.
        self._saving = saving_fields(position)
        if position is not None:
            self.tell({"kind": "saving", "position": position})
        if self._marker is not None:
            self._marker.saving(position)

    def notice(self) -> float | None:
        """Seconds until the machine goes, or None."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def stop_requested(self) -> bool:
        """Never: what stops a node is a notice, and that has a window."""
        return False

    def give_notice(self, window_s: float) -> None:
        """The driver's notice; the window counts from now."""
        self._until = time.monotonic() + window_s

    def tell(self, fact: dict[str, Any]) -> None:
        """Queue one fact for the driver."""
        with self._lock:
            self._facts.append(fact)

    def drain(self) -> list[dict[str, Any]]:
        """Hand over what happened since the last call."""
        with self._lock:
            facts, self._facts = self._facts, []
        return facts


class TrainWorker:
    """One rank; Ray runs it as a threaded actor."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._control = WorkerControl()
        self._listening: Any = None
        if rank == 0:
            tell_warnings(self._control.tell)

    def prepare(self, job: dict[str, Any]) -> float:
        """Import what training needs, while the driver reads rows; returns the seconds that took."""
        began = time.monotonic()
        spec = job_from_dict(job)
        os.environ["OMP_NUM_THREADS"] = str(spec.compute.threads_per_worker)
        gc.disable()  # modules are no garbage: looking through them again and again takes a seventh of the time
        try:
            import alpaca_jobs.training.loop  # noqa: F401
            import checkpoints.torch_bridge  # noqa: F401
            from alpaca_jobs.training.model import preload

            preload(spec.train)
        finally:
            gc.enable()
        gc.freeze()
        return time.monotonic() - began

    def open_rendezvous(self, address: str) -> str:
        """Rank 0: listen for the other ranks on a free port of this machine; returns where."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._listening = TCPStore(address, 0, is_master=True, wait_for_workers=False)
        return f"tcp://{address}:{self._listening.port}"

    def tokenize(self, job: dict[str, Any], rows: Sequence[Row] | str, folder: str) -> Dataset:
        """Turn rows, or the file at a URI, into tokens for all ranks; a file's go into a folder of this machine."""
        from alpaca_jobs.training.dataset import prepare_dataset

        return prepare_dataset(job_from_dict(job).train, rows, folder=Path(folder))

    def tokenize_again(self, job: dict[str, Any], source: str, folder: str, dataset: Dataset) -> None:
        """Make the token files of the first rank's dataset on this machine, where they are missing."""
        from alpaca_jobs.training.dataset import prepare_again

        prepare_again(job_from_dict(job).train, source, dataset, folder=Path(folder))

    def run(self, assignment: WorkerAssignment, dataset: Dataset) -> TrainResult:
        """Train from the newest good checkpoint to the last step, a notice, or an error."""
        from alpaca_jobs.training.control import TrainContext
        from alpaca_jobs.training.loop import run_training
        from checkpoints.torch_bridge import Checkpointer

        job = job_from_dict(assignment.job)
        store = Store.open(assignment.store_uri).child(assignment.run_id)
        log = AttemptLog(store, LAYOUT)
        marker = PhaseMarker(Path(assignment.scratch)) if self._rank == 0 else None
        self._control.begin(assignment, log, marker, total_steps=dataset.num_steps)
        self._meet(assignment)
        checkpointer = Checkpointer(
            store, LAYOUT, stage="train", attempt=assignment.attempt, fence=Fence(log, assignment.attempt),
            keep=job.checkpoints.keep, keep_every=job.checkpoints.keep_every,
            best_by=EVAL_LOSS if job.train.eval is not None else None, when_busy=job.checkpoints.when_busy,
        )  # fmt: skip
        checkpointer.on_saving = self._control.saving
        try:
            return run_training(
                TrainContext(
                    train=job.train,
                    checkpoints=job.checkpoints,
                    rank=self._rank,
                    world_size=assignment.world_size,
                    rows=dataset.rows,
                    tokenizer_files=dataset.tokenizer_files,
                    checkpointer=checkpointer,
                    candidates=assignment.candidates,
                    control=self._control,
                    threads=job.compute.threads_per_worker,
                    ranks_per_node=assignment.world_size // job.compute.num_nodes,
                    device="cuda:0" if assignment.on_gpu else "cpu",
                    losses_per_hour=assignment.losses_per_hour,
                    paid_s_per_byte=assignment.paid_s_per_byte,
                    evaluation=dataset.evaluation,
                )
            )
        finally:
            checkpointer.close()
            part(on_gpu=assignment.on_gpu)

    def _meet(self, assignment: WorkerAssignment) -> None:
        """Join the default process group: gloo for tensors on the CPU, NCCL for those on a GPU.

        NCCL meets with the first tensors, when models are loaded, and asks the store where. One that is handed in waits
        five minutes, and a machine may read its model by more than that slower than another.
        """
        import torch.distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]
        from torch.distributed.constants import default_pg_timeout

        from alpaca_jobs.training.cuda_here import refuse_without_cuda

        if assignment.on_gpu:
            refuse_without_cuda()  # NCCL would be missed first, and say nothing of a driver
        backend = "cpu:gloo,cuda:nccl" if assignment.on_gpu else "gloo"
        where, numbers = assignment.rendezvous, (self._rank, assignment.world_size)
        if where.startswith("file:"):
            dist.init_process_group(backend, init_method=where, rank=numbers[0], world_size=numbers[1])
            return
        host, _, port = where.removeprefix("tcp://").rpartition(":")
        store = self._listening or TCPStore(host, int(port), is_master=False)
        store.set_timeout(default_pg_timeout)  # connected by now: an address that cannot be reached is told in five
        dist.init_process_group(backend, store=store, rank=numbers[0], world_size=numbers[1])

    def export(self, order: ExportOrder, dataset: Dataset) -> str:
        """Write the model of a train commit to a scratch folder and commit it; returns the weights' digest."""
        from alpaca_jobs.training.export import export_model
        from checkpoints.torch_bridge import Checkpointer

        job = job_from_dict(order.job)
        store = Store.open(order.store_uri).child(order.run_id)
        fence = Fence(AttemptLog(store, LAYOUT), order.attempt)
        folder = Path(order.scratch) / "export"
        shutil.rmtree(folder, ignore_errors=True)
        checkpointer = Checkpointer(store, LAYOUT, stage="train", attempt=order.attempt, fence=None, keep=None)
        exported = export_model(
            job.train, checkpointer=checkpointer, ref=order.ref, tokenizer_files=dataset.tokenizer_files,
            facts=card_facts(job, order.run_id, store, num_rows=len(dataset.rows), cost=order.cost),
            folder=folder, merge=job.export.merge,
        )  # fmt: skip
        fence.check()  # before a byte is stored; the writer asks again before the manifest
        writer = CommitWriter(store, LAYOUT, CommitRef("export", 0, order.attempt), fence=fence)
        for name in exported.files:
            put_file(writer, name, folder / name)
        writer.publish(meta={"weights_digest": exported.weights_digest, "step": order.ref.position})
        return exported.weights_digest

    def drain(self) -> list[dict[str, Any]]:
        """What happened since the last call."""
        return self._control.drain()

    def notice(self, window_s: float) -> None:
        """The machine goes within this window: save if it fits, then end."""
        self._control.give_notice(window_s)


def part(*, on_gpu: bool) -> None:
    """Leave the default process group; for a `finally`. A rank that has failed on a GPU stays in it until the driver
    ends its process, as it does with all of them.

    NCCL leaves together with the other ranks of a machine, and they wait in a collective for this one: what it failed
    of, such as a full GPU, would reach nobody before a watchdog ends the others, half an hour later. Source: torch
    2.13, ProcessGroupNCCL::shutdown; NCCL's manual, ncclCommDestroy.
    """
    import torch.distributed as dist

    if not on_gpu or sys.exc_info()[0] is None:
        dist.destroy_process_group()


def put_file(writer: CommitWriter, name: str, path: Path) -> None:
    """Put a file into a commit, mapped: it is read as it is sent, and never in memory as a whole."""
    with path.open("rb") as file:
        writer.put(name, map_file(file))


def card_facts(job: JobSpec, run_id: str, store: Store, *, num_rows: int, cost: str) -> CardFacts:
    """What the run knows for the model card; step, losses and digest are the exporter's to fill in."""
    from alpaca_jobs.training.base_lineage import base_lineage
    from alpaca_jobs.training.model_card import CardFacts

    data = job.data
    if data.from_ is not None:
        origin = f"rows from {data.from_.rpartition('/')[2]}"
    elif isinstance(data.teacher, TeacherSpec):
        origin = f"rows written by {data.teacher.model} from the seed tasks {data.seed_tasks.rpartition('/')[2]}"
    else:
        origin = "rows composed by rule by the built-in offline teacher"
    return CardFacts(
        run_id=run_id, data=origin, is_demo=isinstance(data.teacher, str), num_rows=num_rows, step=0, loss=None,
        weights_digest="", lineage=run_lineage(store, job), base=base_lineage(job.train), cost=cost,
        data_card=store.get(CARD) if store.exists(CARD) else None,
    )  # fmt: skip
