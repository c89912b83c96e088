"""The fingerprint of a training: equal exactly when a checkpoint of one may be continued by the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from alpaca_jobs.spec import TrainSpec

_NOT_MATHEMATICS = {
    "engine", "exactness", "micro_batch_size", "gradient_checkpointing", "cross_entropy", "prefetch_steps",
    "attention", "compile", "tf32", "sharding", "cpu_offload", "tokenizer",
    "eval", "track",
}  # fmt: skip
"""Keys that change speed, memory or the order of sums, but not which function of which rows is computed.
Evaluation is none: rows that it holds out are missing in the digest of those trained on."""

_LATER = ("loss_average", "revision", "template", "templates", "rope_scaling", "packing", "lora")
"""Keys of version 0.2: at their defaults they change nothing, and runs begun before they existed go on."""


def train_fingerprint(train: TrainSpec, *, data_digest: str, tokenizer_files: Mapping[str, bytes]) -> str:
    """SHA-256 over what changes the mathematics: recipe and hyperparameters, the rows as tokens, the tokenizer.

    Not in it: world size, micro batch, infra, limits. A run may be continued with those changed. Keys that came with
    a later version count only where they are not at their defaults: an older run's checkpoints stay its own.
    """
    settings = train.model_dump(mode="json", exclude=_NOT_MATHEMATICS)
    for key in ("command", "command_per", "files", "watch", "hours"):  # of a program of the user's own, not of ours
        del settings[key]
    if settings["lora"] and settings["lora"]["train_embeddings"] == "auto":  # then the tokenizer decides
        del settings["lora"]["train_embeddings"]
    for name in _LATER:
        if settings[name] == TrainSpec.model_fields[name].default or not settings[name]:
            del settings[name]
    if train.loss_average == "micro_batch":
        settings["micro_batch_size"] = train.micro_batch_size  # the mean over each micro batch is the mathematics
    body = {
        "version": 1,
        "train": settings,
        "data": data_digest,
        "tokenizer": {name: hashlib.sha256(data).hexdigest() for name, data in tokenizer_files.items()},
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
