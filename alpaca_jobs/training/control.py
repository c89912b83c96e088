"""What a training run is given and what it tells: the seam between the loop and whoever runs it on a node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.data import TrainingData
from alpaca_jobs.training.metrics import StepMetrics
from checkpoints.keys import CommitRef

if TYPE_CHECKING:
    from alpaca_jobs.training.evaluation import EvaluationReport
    from alpaca_jobs.training.saving import SaveReport
    from checkpoints.torch_bridge import Checkpointer


class TrainControl(Protocol):
    """How the loop talks to its node. Every rank has one; all but the two questions at the end is told to rank 0 alone.

    No method may block for long: training stands still meanwhile.
    """

    def loaded(self, ref: CommitRef | None, fallbacks: Sequence[str]) -> None:
        """State is verified and in memory, no step has run: the moment to record this attempt's base.

        Args:
            ref: the commit that was loaded, or None when training starts at step 0.
            fallbacks: one text for each newer commit that could not be used.
        """

    def stepped(self, metrics: StepMetrics) -> None:
        """An optimizer step is done."""

    def saved(self, result: SaveReport) -> None:
        """A checkpoint is committed (or, by the checkpointer's policy, was not)."""

    def evaluating(self) -> None:
        """The held-out rows are measured from now on, which takes as long as they are many."""

    def evaluated(self, report: EvaluationReport) -> None:
        """The loss of the held-out rows was measured."""

    def notice(self) -> float | None:
        """Seconds until this machine is taken away, or None. Asked on every rank before every step ends; the shortest
        counts.
        """

    def stop_requested(self) -> bool:
        """Whether to save and stop, for a reason that leaves time to save. One rank saying so is enough."""


@dataclass(frozen=True)
class TrainContext:
    """Everything run_training needs. The process group is initialised; all ranks hold the same rows, files and
    candidates.

    Attributes:
        candidates: committed train steps that count, newest first; empty means: start at step 0.
        threads: CPU threads of this rank; part of what makes bits repeatable.
        ranks_per_node: ranks that share a machine; None: all of them.
        device: "cpu" or "cuda:N".
        evaluation: rows held out, for `train.eval`.
        losses_per_hour: how often this job's machines are expected to be taken away; an automatic interval saves by it.
        paid_s_per_byte: what storing a byte is billed, as seconds of the machines at their price; by that, too.
    """

    train: TrainSpec
    checkpoints: CheckpointSpec
    rank: int
    world_size: int
    rows: TrainingData
    tokenizer_files: Mapping[str, bytes]
    checkpointer: Checkpointer
    candidates: Sequence[CommitRef]
    control: TrainControl
    threads: int = 1
    ranks_per_node: int | None = None
    device: str = "cpu"
    losses_per_hour: float = 0.0
    paid_s_per_byte: float = 0.0
    evaluation: TrainingData | None = None


StoppedBy = Literal["done", "notice", "stop"]


@dataclass(frozen=True)
class TrainResult:
    """How training ended.

    Attributes:
        final_step: updates done.
        num_steps: updates the whole training has.
        saved_step: newest step this attempt committed or started from; 0 for none.
        losses: of this attempt's steps, in order.
        words: why it stopped and what is kept, for people.
        stopped_early: done before the last step, because the evaluation loss fell no more.
    """

    final_step: int
    num_steps: int
    stopped_by: StoppedBy
    saved_step: int
    losses: tuple[float, ...]
    words: str
    stopped_early: bool = False
