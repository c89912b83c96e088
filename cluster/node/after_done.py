"""after_done: delete: the training state goes once the model is committed and every byte of it was read again."""

from __future__ import annotations

import logging
from typing import Any

from alpaca_jobs.training.evaluation import read_evaluations, write_evaluations
from checkpoints.errors import CheckpointError, Damaged, NotCommitted
from checkpoints.pruning import delete_stage, made_of
from checkpoints.reader import CommitReader, list_commits
from cluster.node.attempt_context import AttemptContext

logger = logging.getLogger(__name__)


def delete_trained(ctx: AttemptContext) -> None:
    """Delete the run's training checkpoints if the job says so; the model has been committed.

    What only they say, the losses of held-out rows, is told as an event first, for the report. A failure is a warning:
    the model is there, and `checkpoints prune --keep 0` does the same later.
    """
    if ctx.job.checkpoints.after_done != "delete":
        return
    try:
        model = made_of(ctx.store, ctx.layout, "train")
        ctx.events.emit("tidied", stage="train", evaluations=_evaluations(ctx))
        gone = delete_stage(ctx.store, ctx.layout, stage="train", by=model, fence=ctx.fence)
    except CheckpointError as exc:
        logger.warning(
            "The training checkpoints stay, although after_done is delete: %s Delete them later with `alpaca-jobs "
            "checkpoints prune %s --keep 0`.", exc, ctx.run_id,
        )  # fmt: skip
        return
    logger.info("deleted %d training checkpoints: the model is committed and whole", len(gone))


def _evaluations(ctx: AttemptContext) -> list[list[Any]]:
    """Step and loss, as JSON values, from the newest train commit that can be read."""
    for ref in list_commits(ctx.store, ctx.layout, "train"):
        try:
            done = read_evaluations(CommitReader.open(ctx.store, ctx.layout, ref).manifest.meta)
        except (Damaged, NotCommitted):
            continue
        return write_evaluations(done)
    return []
