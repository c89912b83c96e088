"""Where a job's stages keep their commits below <store>/<run_id>/; the order of the stages is the order of time."""

from __future__ import annotations

from checkpoints.keys import Layout, Stage

GENERATE = Stage("generate", "data", "part-", 6)
TRAIN = Stage("train", "checkpoints", "step-", 8)
EXPORT = Stage("export", "model", "", 0)

LAYOUT = Layout((GENERATE, TRAIN, EXPORT))
