"""Where a job's stages keep their commits below <store>/<run_id>/; the order of the stages is the order of time."""

from __future__ import annotations

from checkpoints.best import Metric
from checkpoints.keys import Layout, Stage

GENERATE = Stage("generate", "data", "part-", 6)
TRAIN = Stage("train", "checkpoints", "step-", 8)
EXPORT = Stage("export", "model", "", 0)

LAYOUT = Layout((GENERATE, TRAIN, EXPORT))

EVAL_LOSS = Metric("eval_loss")
"""The number of a train commit by which `train.eval` finds the best: mean loss over the target tokens held out."""
