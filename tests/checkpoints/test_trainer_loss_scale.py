"""A Trainer in fp16 goes on from a commit of a version that did not keep the loss scale, and says what that means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hand_driven import Steps

from checkpoints.store import Store
from checkpoints.torch_trainer import StoreCallback


def _with_scaler(store: Store, **scaler: Any) -> tuple[StoreCallback, Steps, Any]:
    callback = StoreCallback(store, every_steps=1)
    steps = Steps(callback)
    steps.optimizer.scaler = made = torch.amp.GradScaler("cpu", **scaler)  # type: ignore[attr-defined]
    return callback, steps, made


def test_a_commit_from_before_the_loss_scale_was_kept_goes_on_with_a_new_one(
    memory_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first, steps, _ = _with_scaler(memory_store, enabled=False)
    steps.begin()
    steps.step()
    weights = [param.detach().clone() for param in steps.model.parameters()]
    steps.step()
    first.close()
    second, again, fresh = _with_scaler(memory_store, init_scale=512.0)
    second._loaded = second._run.resume({}, partial=True)
    again.state.global_step = 1
    with caplog.at_level("WARNING"):
        again.begin()
    assert "holds no loss scale of fp16: it was saved by a version" in caplog.text
    assert fresh.get_scale() == 512.0
    loaded = list(again.model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(weights, loaded, strict=True))
    second.close()
