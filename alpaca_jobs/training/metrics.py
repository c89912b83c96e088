"""StepMetrics: what one optimizer step did, in the units the report prints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step of the whole job.

    Attributes:
        step: updates done, this one included.
        epoch: from 0.
        loss: mean cross entropy over the target tokens of the global batch, nats.
        learning_rate: of this update.
        grad_norm: over all parameters, before clipping.
        tokens: tokens of the global batch, padding excluded.
        target_tokens: those of them that carry loss.
        seconds: wall clock of the step on rank 0, waiting for checkpoints excluded.
        tokens_per_second: tokens / seconds, of all ranks together.
        tokens_per_second_per_gpu: the same per rank.
        mfu: model FLOPs utilisation, a fraction (PaLM, arXiv:2204.02311, appendix B); None where the peak is not known.
        peak_memory_bytes: most memory that the fullest rank has had up to this step: of its GPU, what tensors took;
            on a CPU, the whole process (its resident set).
        data_wait_s: of `seconds`, what rank 0 waited for its rows to be read and laid out.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    target_tokens: int
    seconds: float
    tokens_per_second: float
    tokens_per_second_per_gpu: float
    mfu: float | None
    peak_memory_bytes: int
    data_wait_s: float
