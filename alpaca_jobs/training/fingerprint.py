"""The fingerprint of a training: equal exactly when a checkpoint of one may be continued by the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from alpaca_jobs.spec import TrainSpec

_NOT_MATHEMATICS = {"engine", "exactness", "micro_batch_size", "gradient_checkpointing"}
"""Keys that change speed, memory or the order of sums, but not which function of which rows is computed."""


def train_fingerprint(train: TrainSpec, *, data_digest: str, tokenizer_files: Mapping[str, bytes]) -> str:
    """SHA-256 over what changes the mathematics: recipe and hyperparameters, the rows as tokens, the tokenizer.

    Not in it: world size, micro batch, infra, limits. A run may be continued with those changed.
    """
    body = {
        "version": 1,
        "train": train.model_dump(mode="json", exclude=_NOT_MATHEMATICS),
        "data": data_digest,
        "tokenizer": {name: hashlib.sha256(data).hexdigest() for name, data in tokenizer_files.items()},
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
