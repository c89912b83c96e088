"""The fingerprint changes with the mathematics and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.fingerprint import train_fingerprint


def _of(*, data: str = "d", tokenizer: bytes = b"t", **train: Any) -> str:
    spec = TrainSpec(**{"model": "tiny-llama", **train})
    return train_fingerprint(spec, data_digest=data, tokenizer_files={"tokenizer.json": tokenizer})


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-4},
        {"global_batch_size": 64},
        {"epochs": 2},
        {"seed": 1},
        {"dtype": "float32"},
        {"model": "facebook/opt-125m"},
        {"data": "other"},
        {"tokenizer": b"other"},
        {"loss_average": "micro_batch"},
    ],
)
def test_what_changes_the_result_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert _of(**change) != _of()


@pytest.mark.parametrize(
    "change",
    [
        {"micro_batch_size": 2},
        {"exactness": "bits"},
        {"engine": "fsdp"},
        {"gradient_checkpointing": True},
        {"cross_entropy": "plain"},
        {"prefetch_steps": 0},
        {"attention": "mask"},
        {"compile": True},
        {"tf32": False},
    ],
)
def test_speed_and_memory_do_not(change: dict[str, Any]) -> None:
    assert _of(**change) == _of()


def test_the_micro_batch_is_mathematics_when_losses_are_averaged_over_each() -> None:
    assert _of(loss_average="micro_batch", micro_batch_size=2) != _of(loss_average="micro_batch", micro_batch_size=4)
