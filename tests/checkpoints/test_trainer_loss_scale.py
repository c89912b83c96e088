"""A Trainer in fp16: its optimizer is accelerate's, its loss scale goes on, or a commit has none and that is said."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from hand_driven import Steps

from checkpoints.store import Store
from checkpoints.torch_trainer import StoreCallback


def _with_scaler(store: Store, **scaler: Any) -> tuple[StoreCallback, Steps, Any]:
    callback = StoreCallback(store, every_steps=1)
    steps = Steps(callback)
    steps.optimizer.scaler = made = torch.amp.GradScaler("cpu", **scaler)  # type: ignore[attr-defined]
    return callback, steps, made


@pytest.fixture
def accelerator() -> Iterator[None]:
    """As a Trainer makes it; what it notes for the whole process is forgotten again."""
    Accelerator(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_what_accelerate_wraps_goes_on_before_there_was_a_loss_to_scale(memory_store: Store, accelerator: None) -> None:
    def begun() -> tuple[StoreCallback, Steps]:
        callback, steps, scaler = _with_scaler(memory_store)
        del steps.optimizer.scaler  # type: ignore[attr-defined]
        wrapped: Any = AcceleratedOptimizer(steps.optimizer, device_placement=False, scaler=scaler)
        steps.parts["optimizer"] = wrapped
        return callback, steps

    first, steps = begun()
    steps.begin()
    steps.step()
    moments = copy.deepcopy(steps.optimizer.state_dict())
    steps.step()
    first.close()
    second, again = begun()
    second._loaded = second._run.resume({}, partial=True)
    again.state.global_step = 1
    again.begin()
    second.close()
    torch.testing.assert_close(again.optimizer.state_dict(), moments, rtol=0, atol=0)


def test_a_save_is_no_step_of_an_optimizer_that_has_passed_over_all_so_far(memory_store: Store) -> None:
    """As in fp16, whose first scales overflow: without moments torch made them by a step, and counted it."""
    callback, steps, _ = _with_scaler(memory_store, enabled=False)
    steps.begin()
    steps._tell("on_step_begin")
    steps.state.global_step = 1
    steps._tell("on_step_end")
    steps.step()  # saves, and makes the first step
    callback.close()
    assert [float(kept["step"]) for kept in steps.optimizer.state.values()] == [1.0, 1.0]


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
