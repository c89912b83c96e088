"""Which trackers a job asks for, made for one attempt."""

from __future__ import annotations

from collections.abc import Sequence

from alpaca_jobs.spec_io import job_to_dict
from cluster.node.attempt_context import AttemptContext
from cluster.node.tracking import Tracker, Tracking


def start_tracking(ctx: AttemptContext) -> Tracking | None:
    """Begin to track an attempt's training; None where the job asks for no tracker."""
    return Tracking(ctx, lambda: _make(ctx)) if ctx.job.train.track else None


def _make(ctx: AttemptContext) -> Sequence[Tracker]:
    trackers: list[Tracker] = []
    if "tensorboard" in ctx.job.train.track:
        from cluster.node.track_tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(ctx.store, ctx.attempt))
    if "wandb" in ctx.job.train.track:
        from cluster.node.track_wandb import WandbTracker

        trackers.append(
            WandbTracker(
                ctx.store, ctx.attempt, run_id=ctx.run_id, name=ctx.job.name,
                settings={"train": job_to_dict(ctx.job)["train"]}, folder=ctx.scratch / "wandb",
            )
        )  # fmt: skip
    return trackers
